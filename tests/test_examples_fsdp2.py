"""The training example: it learns, however it is spread, and goes on where another number of ranks stopped."""

import pytest
from distributed_example_jobs import run_example


@pytest.fixture(scope="module")
def expected(ranks):
    losses = ranks(2).run(run_example, ["--steps", "12"])
    assert losses[0] == losses[1] and losses[0][-1] < 0.9 * losses[0][0]
    return losses[0]


@pytest.mark.parametrize(("world", "how"), [(2, ["--ddp"]), (4, ["--hsdp"]), (4, ["--tp", "2"])], ids=str)
def test_every_way_learns_alike(ranks, expected, world, how):
    for losses in ranks(world).run(run_example, ["--steps", "12", *how]):
        assert losses == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("how", [[], ["--ddp"], ["--tp", "2"]], ids=["FSDP2", "--ddp", "--tp 2"])
def test_resumes_on_another_number_of_ranks(ranks, expected, how, tmp_path):
    folder = ["--checkpoint", str(tmp_path)]
    ranks(2).run(run_example, ["--steps", "6", *how, *folder])
    for losses in ranks(4).run(run_example, ["--steps", "12", *folder]):
        assert losses == pytest.approx(expected[6:], rel=1e-3)


def test_options_that_do_not_divide(ranks):
    with pytest.raises(AssertionError, match="4 ranks cannot be divided"):
        ranks(4).run(run_example, ["--tp", "3"])
    with pytest.raises(AssertionError, match="--batch must be a multiple of 4, got 6"):
        ranks(4).run(run_example, ["--batch", "6"])
    with pytest.raises(AssertionError, match="--width must be a multiple of 16, got 40"):
        ranks(4).run(run_example, ["--width", "40"])
