"""The benchmark's floors, by hand."""

import pytest
import torch

from bench.ceilings import Ceilings
from bench.cells import MODELS, ORTHOGONALIZE, MatrixCell, StepCell
from bench.floors import dense_flops, gram_flops, matrix_bytes, minimal_flops, op_cost, standard_flops, step_bytes
from bench.floors import step_flops as flops_of_step

H100 = Ceilings({"1x8192": 710e12}, 3.02e12, {})

# ms at 710 TFLOP/s and 3.02 TB/s, worked out by hand from T(3s + 1)m^3, (14 + 6s)m^3 and the bytes of each phase
ANCHORS = [
    (MatrixCell(768, 768, 48), 0.612),
    (MatrixCell(768, 3072, 12), 0.291),
    (MatrixCell(2048, 768, 64), 1.23),
    (MatrixCell(4096, 11008, 1), 2.92),
    (MatrixCell(8192, 8192, 1), 15.5),
]


@pytest.mark.parametrize(("cell", "ms"), ANCHORS, ids=str)
def test_floor_of_an_orthogonalisation(cell: MatrixCell, ms: float) -> None:
    flops = minimal_flops(cell.rows, cell.cols, cell.batch)
    assert H100.floor(flops, matrix_bytes(cell.rows, cell.cols, cell.batch, 2)) * 1e3 == pytest.approx(ms, rel=0.01)


@pytest.mark.parametrize(
    ("model", "dtype", "arithmetic_ms", "ms"),
    [
        ("gpt2", torch.float32, 1.19, 1.81),
        ("gpt2", torch.bfloat16, 1.19, 1.53),
        ("llama1b", torch.bfloat16, 30.0, 33.9),
        ("llama1b", torch.float32, 30.0, 37.1),
    ],
)
def test_floor_of_a_step(model: str, dtype: torch.dtype, arithmetic_ms: float, ms: float) -> None:
    counts = StepCell(model, dtype).counts
    flops, _ = flops_of_step(counts)
    assert flops / H100.flops * 1e3 == pytest.approx(arithmetic_ms, rel=0.01)
    assert H100.floor_in_turn(flops, step_bytes(counts, dtype.itemsize)) * 1e3 == pytest.approx(ms, rel=0.01)


def test_flops_of_the_chains() -> None:
    assert standard_flops(64, 64) == 5 * 4 * 64**3
    assert dense_flops(64, 64) == 5 * 6 * 64**3
    assert gram_flops(64, 256) == (14 + 24) * 64**3
    assert gram_flops(64, 256, steps=2) == (5 + 12) * 64**3
    assert minimal_flops(256, 64) == gram_flops(64, 256) < standard_flops(64, 256)
    assert minimal_flops(64, 64) == standard_flops(64, 64)


def test_cost_of_the_ops() -> None:
    assert op_cost("gram", 64, 256, 3, 4, 2) == (64 * 64 * 256 * 3, 2 * 64 * 64 * 256 * 3, 2 * 3 * (64 * 256 + 64 * 64))
    assert op_cost("polynomial", 64, 64, 1, 4, 2) == (64**3, 2 * 64**3, 2 * 2 * 64 * 64)
    assert op_cost("final", 64, 256, 1, 4, 2)[:2] == (2 * 64 * 64 * 256,) * 2
    assert op_cost("prologue", 64, 64, 1, 4, 2)[2] + op_cost("apply", 64, 64, 1, 4, 2)[2] == 64 * 64 * (14 + 10)


def test_cells_are_the_published_ones() -> None:
    assert len(set(ORTHOGONALIZE)) == 13
    assert sum(r * c for r, c in MODELS["gpt2"]) == pytest.approx(84.9e6, rel=1e-3)
    assert sum(r * c for r, c in MODELS["llama1b"]) == pytest.approx(973e6, rel=1e-3)
