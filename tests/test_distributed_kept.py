"""What is known of a group is kept while its tensors stay as they are, and every change is noticed."""

import distributed_kept_jobs as jobs
import pytest

KINDS = ["FSDP", "DDP", "DDP, state in rows"]
LOCAL = "its momentum's local tensor must be floating"

FLATTEN = "layout 'flatten' needs a contiguous parameter and momentum"


@pytest.mark.parametrize(
    ("kind", "spoil", "message", "layout"),
    [
        ("FSDP", jobs.shorter_gradient, "its gradient's local tensor must be [6, 40], got [5, 40]", None),
        *[("FSDP", spoil, LOCAL, None) for spoil in (jobs.shorter_momentum, jobs.momentum_of_integers)],
        *[("DDP, state in rows", spoil, LOCAL, None) for spoil in (jobs.shorter_momentum, jobs.momentum_of_integers)],
        ("DDP", jobs.momentum_of_integers, LOCAL, None),
        ("DDP", jobs.shorter_momentum, "its momentum must be [24, 40] [] over the ranks", None),
        *[(kind, jobs.momentum_elsewhere, "its momentum must be [24, 40]", None) for kind in KINDS],
        *[(kind, jobs.column_major_momentum, FLATTEN, "flatten") for kind in KINDS],
        *[(kind, jobs.column_major_parameter, FLATTEN, "flatten") for kind in KINDS[1:]],
    ],
)
def test_an_error_after_a_good_step(ranks, kind, spoil, message, layout):
    assert len(set(ranks(4).run(jobs.wrong_after_a_good_step, kind, spoil, message, layout))) == 1


@pytest.mark.parametrize("kind", KINDS[1:])
def test_another_shape_after_a_good_step(ranks, kind):
    assert len(set(ranks(4).run(jobs.other_shape_after_a_good_step, kind))) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_has_changed_is_checked(ranks, kind):
    assert ranks(2).run(jobs.checked, kind) == [[9, 0, 9, 0, 9]] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_no_tensor_is_kept(ranks, kind):
    assert ranks(2).run(jobs.alive_after_a_step, kind) == [0, 0]
