"""The choice of a tile configuration: a pure function, checked without a GPU."""

import pytest

from muon_kernels.backends import configs

CARDS = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148, 120: 170}
OPS = ("symm_gemm", "gemm_add")
REGISTERS = 65_536
"""Of a multiprocessor."""


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
        assert c.programs == 0 or (sm >= 90 and c.programs == candidate.resident)
        assert c.registers is None or c.registers * c.warps * 32 * candidate.resident <= REGISTERS
        if op == "symm_gemm":  # whose tiles are stored in squares
            assert c.block_m <= c.block_n


@pytest.mark.parametrize("sm", CARDS)
@pytest.mark.parametrize("op", OPS)
def test_few_small_matrices_get_small_tiles_and_large_ones_large_tiles(op, sm):
    def area(batch, side):
        c = configs.gemm_config(op, batch, side, side, side, 2, sm, CARDS[sm], wide=True, described=True)
        return c.block_m * c.block_n

    largest = max(c.config.block_m * c.config.block_n for c in configs.candidates(op, 2, sm))
    assert area(1, 256) < area(1, 8192) == largest
    assert area(1, 256) <= area(64, 1024)


@pytest.mark.parametrize("op", OPS)
def test_operands_are_loaded_as_they_can_be(op):
    def programs(sm, **lie):
        c = configs.gemm_config(op, 48, 768, 768, 768, 2, sm, CARDS[sm], **lie)
        return c and c.programs

    assert programs(90, wide=True, described=True)
    assert programs(90, wide=False, described=True)
    assert programs(90, wide=True, described=False) == programs(80, wide=True, described=True) == 0
    assert programs(90, wide=False, described=False) is programs(80, wide=False, described=True) is None


def test_tiles_of_a_triangle():
    config = configs.GemmConfig(64, 128, 64, 4, 2, 8)
    assert [configs.tile_count("symm_gemm", config, m, m) for m in (1, 128, 129, 300)] == [2, 2, 6, 12]
    assert [configs.tile_count("gemm_add", config, m, m) for m in (1, 128, 129, 300)] == [1, 2, 6, 15]


def test_cards_that_were_not_measured_take_the_next_older_ones():
    assert configs.candidates("gemm_add", 2, 103) == configs.candidates("gemm_add", 2, 100)
    assert configs.candidates("gemm_add", 2, 87) == configs.candidates("gemm_add", 2, 86)
    assert configs.shared_memory_limit(121) == configs.shared_memory_limit(120) == 101_376
    assert configs.shared_memory_limit(90) == 232_448


def test_cost_counts_waves():
    candidate = configs.Candidate(None, resident=2, fixed_us=1.0, alone_us_per_k=0.5, full_us_per_k=0.75)
    assert [candidate.cost(tiles, 4, 10) for tiles in (1, 10, 11, 20, 21, 41)] == [3, 3, 4, 4, 7, 11]
