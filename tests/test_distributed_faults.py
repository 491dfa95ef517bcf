"""Faults: one named error on every rank, with nothing changed."""

import distributed_fault_jobs as jobs
import pytest
import torch
from distributed_pool import Pool

from muon_kernels.variants import NorMuon


@pytest.fixture(params=[0, 1])
def good_steps(request):
    """How many steps came before the one that is wrong."""
    return request.param


@pytest.mark.parametrize("kind", ["replicated", "HSDP", "DDP", "DDP, state in rows"])
def test_replicas_that_disagree_on_gradients(ranks, kind, good_steps):
    assert len(set(ranks(4).run(jobs.replicas_disagree, kind, good_steps))) == 1


@pytest.mark.parametrize("kind", ["FSDP", "DDP"])
def test_shuffled_parameters(ranks, kind):
    assert len(set(ranks(4).run(jobs.shuffled, kind))) == 1


@pytest.mark.parametrize("job", [jobs.other_shapes, jobs.other_counts, jobs.other_dtypes])
def test_ranks_that_differ(ranks, job):
    assert len(set(ranks(4).run(job))) == 1


@pytest.mark.parametrize("trouble", ["Partial", "another mesh"])
@pytest.mark.parametrize("kind", ["FSDP", "replicated"])
def test_a_bad_gradient_on_one_rank(ranks, kind, trouble, good_steps):
    assert len(set(ranks(4).run(jobs.bad_grad_on_one_rank, kind, trouble, good_steps))) == 1


@pytest.mark.parametrize(
    "job", [jobs.bad_momentum_on_one_rank, jobs.bad_plain_grad_on_one_rank, jobs.unknown_backend_on_one_rank]
)
def test_other_faults_on_one_rank(ranks, job, good_steps):
    assert len(set(ranks(4).run(job, good_steps))) == 1


@pytest.mark.parametrize("what", ["gradient", "momentum", "local tensor"])
def test_what_torch_negates_as_it_reads_it_on_one_rank(ranks, what):
    assert len(set(ranks(4).run(jobs.negated_on_one_rank, what))) == 1


@pytest.mark.parametrize("kind", ["FSDP", "HSDP", "DDP"])
def test_a_named_backend_that_refuses_on_one_rank(ranks, kind, good_steps):
    assert len(set(ranks(4).run(jobs.backend_on_one_rank, kind, good_steps))) == 1


def test_a_named_backend_is_not_asked_for_parameters_without_gradients(ranks):
    ranks(2).run(jobs.backend_without_gradients)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {"compute_dtype": torch.float16}),
        (torch.float32, {"ns_steps": 0}),
        (torch.float64, {"method": "svd", "compute_dtype": torch.float64, "momentum_dtype": torch.float32}),
        (torch.float64, {"normalizer": NorMuon()}),
        (torch.bfloat16, {"weight_decay_rule": "cautious"}),
        (torch.bfloat16, {"master_dtype": torch.float32, "preconditioning": "aol"}),
    ],
)
def test_a_named_backend_is_asked_before_a_step(ranks, dtype, options):
    """Every rank for what it may do, and together for no more than what they do."""
    before, within = zip(*ranks(4).run(jobs.asked_of_the_backend, dtype, options), strict=True)
    assert before == (set().union(*within),) * 4
    assert before[0]


@pytest.mark.parametrize("job", [jobs.other_options, jobs.variant_between_steps])
def test_an_option_that_changes_between_steps(ranks, job, good_steps):
    assert len(set(ranks(4).run(job, good_steps))) == 1


def test_trouble_in_a_part_of_the_ranks(ranks, good_steps):
    ranks(4).run(jobs.trouble_in_a_part, good_steps)


def test_an_absent_rank_and_a_destroyed_group(ranks):
    answers = ranks(4).run(jobs.nobody_there)
    assert answers == [["CollectiveFailed"] * 2] * 3 + [["CollectiveFailed"]]


def test_a_dead_peer(tmp_path):
    pool = Pool(2, str(tmp_path / "rendezvous"))
    try:
        (how, error), dead = pool.answers(jobs.dies)
    finally:
        pool.close()
    assert dead == ("raised", "the process ended")
    assert how == "returned" and error.startswith("CollectiveFailed: the roll call before a step failed"), error
