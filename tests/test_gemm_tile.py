"""The choice of a tile shape is a function of sizes alone; it needs the extension but no GPU."""

import pytest

from muon_kernels import extension

pytestmark = pytest.mark.skipif(extension.unavailable_reason() is not None, reason="needs the extension")

H100 = 132
WIDE_PAIR, PAIR, OBLONG, WIDE, SMALL, SQUARE = range(6)


def choose(symmetric, *sizes, multiprocessors=H100, address=0):
    items = [(*size, address, *[64] * 15) for size in sizes]
    return extension.load().choose_gemm_tile(symmetric, items, multiprocessors)


@pytest.mark.parametrize(
    ("symmetric", "sizes", "tile"),
    [
        (False, [(1, 8192, 8192, 8192)], WIDE_PAIR),
        (False, [(12, 768, 3072, 768)], OBLONG),
        (False, [(16, 2048, 2048, 2048)], WIDE_PAIR),
        (True, [(1, 8192, 8192, 8192)], WIDE_PAIR),
        (True, [(1, 4096, 4096, 4096)], WIDE),
        (True, [(16, 2048, 2048, 2048)], PAIR),
        (True, [(48, 768, 768, 768)], PAIR),
        (True, [(7, 2048, 2048, 2048)], PAIR),
        (True, [(7, 2048, 2048, 8192)], WIDE_PAIR),
        (True, [(8, 4096, 4096, 4096)], WIDE_PAIR),
        (False, [(24, 1024, 4096, 1024)], WIDE_PAIR),
        (False, [(12, 768, 3072, 768), (12, 768, 3072, 768)], OBLONG),
        (True, [(1, 768, 768, 768)], SMALL),
        (True, [(256, 128, 128, 128)], SQUARE),
        (True, [(24, 768, 768, 768), (24, 768, 768, 768)], PAIR),
    ],
)
def test_measured_shapes(symmetric, sizes, tile):
    assert choose(symmetric, *sizes) == tile


def test_addresses_do_not_matter():
    size = (3, 1000, 1000, 520)
    assert choose(True, size, address=16) == choose(True, size, address=2**40)


@pytest.mark.parametrize("multiprocessors", [1, 2, 66, 114, 132])
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_size_gets_a_tile(symmetric, multiprocessors):
    for edge in (8, 72, 520, 4104, 40_000):
        tile = choose(symmetric, (1, edge, edge, 64), (7, edge, edge, 8), multiprocessors=multiprocessors)
        assert tile in range(6) and not (symmetric and tile == OBLONG)
