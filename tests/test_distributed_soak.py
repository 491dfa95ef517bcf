"""The soak in short: a rank dies in the middle of a step, all start again, and the bits are those of a quiet run."""

from distributed_soak import Death, random_deaths, soak, train


def test_a_rank_that_dies_leaves_no_trace(ranks, tmp_path):
    quiet, disturbed = tmp_path / "quiet", tmp_path / "disturbed"
    disturbed.mkdir()
    expected = ranks(2).run(train, "FSDP", str(quiet), 6, 2, None)
    errors, found = soak("FSDP", 2, disturbed, 6, 2, [Death(rank=1, step=3, point=1)])
    assert "CollectiveFailed: scattering updates failed" in errors[0][0]
    assert found == expected and expected[0] == expected[1]


def test_deaths_are_drawn_in_order():
    deaths = random_deaths(seed=3, count=9, steps=20, world=4)
    assert [d.step for d in deaths] == sorted({d.step for d in deaths}) and deaths == random_deaths(3, 9, 20, 4)
