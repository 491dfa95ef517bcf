"""The choice of a tile configuration: a pure function, checked without a GPU."""

import pytest

from muon_kernels.backends import configs

CARDS = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148, 120: 170}
OPS = ("symm_gemm", "gemm_add")


@pytest.mark.parametrize("sm", CARDS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("itemsize", [2, 4])
def test_candidates_are_legal(op, itemsize, sm):
    for candidate in configs.candidates(op, itemsize, sm):
        c = candidate.config
        assert all(n >= 16 and n & (n - 1) == 0 for n in (c.block_m, c.block_n, c.block_k))
        assert c.warps in (4, 8) and c.stages >= 1 and candidate.resident >= 1
        assert candidate.fixed_us > 0 and 0 < candidate.alone_us_per_k <= candidate.full_us_per_k
        shared = (c.block_m + c.block_n) * c.block_k * itemsize * c.stages
        assert shared * candidate.resident <= configs.shared_memory_limit(sm)
        if op == "symm_gemm":
            # The walk over the triangle: tiles not higher than wide, bands that end on a tile's edge.
            assert c.block_m <= c.block_n and c.group * c.block_m % c.block_n == 0


@pytest.mark.parametrize("sm", CARDS)
@pytest.mark.parametrize("op", OPS)
def test_few_small_matrices_get_small_tiles_and_large_ones_large_tiles(op, sm):
    def area(batch, side):
        c = configs.gemm_config(op, batch, side, side, side, 2, sm, CARDS[sm])
        return c.block_m * c.block_n

    largest = max(c.config.block_m * c.config.block_n for c in configs.candidates(op, 2, sm))
    assert area(1, 256) < area(1, 8192) == largest
    assert area(1, 256) <= area(64, 1024)


def test_small_symmetric_products_start_no_program_in_vain():
    small = configs.gemm_config("symm_gemm", 48, 768, 768, 768, 2, 90, 132)
    assert small.group == small.block_n // small.block_m
    assert configs.gemm_config("symm_gemm", 1, 8192, 8192, 8192, 2, 90, 132).group == 8


def test_cards_that_were_not_measured_take_the_next_older_ones():
    assert configs.candidates("gemm_add", 2, 103) == configs.candidates("gemm_add", 2, 100)
    assert configs.candidates("gemm_add", 2, 87) == configs.candidates("gemm_add", 2, 86)
    assert configs.shared_memory_limit(121) == configs.shared_memory_limit(120) == 101_376
    assert configs.shared_memory_limit(90) == 232_448


def test_cost_counts_waves():
    candidate = configs.Candidate(None, resident=2, fixed_us=1.0, alone_us_per_k=0.5, full_us_per_k=0.75)
    assert [candidate.cost(tiles, 4, 10) for tiles in (1, 10, 11, 20, 21, 41)] == [3, 3, 4, 4, 7, 11]
