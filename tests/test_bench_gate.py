"""The benchmark's gate: what it lets pass and what it refuses."""

import math

import pytest
import torch

from bench.bench_ops import check
from bench.cells import OpCell
from bench.gate import GateRefused, Judge, Promise, demand, orthogonality
from bench.op_kinds import KINDS
from bench.peers.base import promise
from bench.peers.baselines import newton_schulz, svd
from muon_kernels import orthogonalize
from muon_kernels.squaring import STAGES

CPU = torch.device("cpu")


@pytest.fixture
def g() -> torch.Tensor:
    return torch.randn(3, 48, 96, generator=torch.Generator().manual_seed(0)).bfloat16()


@pytest.mark.parametrize("tall", [False, True])
def test_gate_accepts_what_is_right(g: torch.Tensor, tall: bool) -> None:
    g = g.mT.contiguous() if tall else g
    accuracy = Judge(g).check(newton_schulz(g), promise())
    assert 0 < accuracy.error <= 2 * accuracy.yardstick_error
    assert Judge(g).check(list(svd(g)), None).orthogonality < 1e-5


@pytest.mark.parametrize(
    "spoil",
    [
        lambda o: o.index_fill(0, torch.tensor([2]), torch.nan),
        lambda o: o[:2],
        lambda o: o.roll(1, 0),
        lambda o: o * 1.1,
        lambda o: torch.cat([o[:, :, :8].roll(1, 1), o[:, :, 8:]], 2),
        lambda o: o.index_put((torch.tensor(1), torch.tensor(5), torch.tensor(7)), o[1, 5, 7] + 0.3),
        lambda o: o + 0.1 * o.square().mean().sqrt() * o.roll(7, 2).sign(),
        torch.zeros_like,
    ],
    ids=["nan", "shape", "other matrix", "scale", "tile", "element", "noise", "zeros"],
)
def test_gate_refuses_what_is_wrong(g: torch.Tensor, spoil) -> None:
    with pytest.raises(GateRefused):
        Judge(g).check(spoil(newton_schulz(g)), promise())


def test_gate_takes_no_nan_for_an_answer(g: torch.Tensor) -> None:
    with pytest.raises(GateRefused, match="non-finite"):
        Judge(g).check(torch.full_like(g, torch.nan), promise())
    with pytest.raises(GateRefused, match="over its limit"):
        demand("error", math.nan, 1.0)


def test_gate_refuses_another_polynomial_and_another_factor(g: torch.Tensor) -> None:
    with pytest.raises(GateRefused):
        Judge(g).check(newton_schulz(g), promise("quintic"))
    flipped = svd(g)
    flipped[1] *= -1
    with pytest.raises(GateRefused, match="trace"):
        Judge(g).check(flipped, None)


def test_promise_of_a_squaring_chain(g: torch.Tensor) -> None:
    expected = orthogonalize(g, method="squaring", compute_dtype=torch.float64)
    made = Promise((), stages=STAGES, rescale="schatten4")
    torch.testing.assert_close(made.evaluate(g.double(), torch.float64).to(g.dtype), expected)
    Judge(g).check(orthogonalize(g, method="squaring", compute_dtype=torch.float16), made)


def test_promise_with_rescaled_rows_is_the_same_in_both_orientations(g: torch.Tensor) -> None:
    turbo = Promise(((3.0, -3.2, 1.2),) * 4, rescale="aol")
    wide, tall = turbo.evaluate(g, torch.float64), turbo.evaluate(g.mT, torch.float64)
    assert torch.allclose(wide, tall.mT)
    assert orthogonality(torch.eye(4, 8)[None]) == 0


@pytest.mark.parametrize("kind", list(KINDS))
def test_op_gate(kind: str) -> None:
    op = KINDS[kind]
    inputs = op.make(OpCell(kind, 32, 48, 2), CPU, 0)
    assert check(op, op.torch, inputs, symmetric=False)["error"] < 0.01

    def wrong(tensors: dict[str, list[torch.Tensor]]) -> None:
        op.torch(tensors)
        tensors[op.results[0]][0].flatten()[3:5].mul_(0)

    with pytest.raises(GateRefused):
        check(op, wrong, inputs, symmetric=False)
    op.torch(inputs)  # a right result that lies there already must not pass for a new one
    with pytest.raises(GateRefused):
        check(op, lambda tensors: None, inputs, symmetric=False)


def test_op_gate_wants_symmetry_to_the_bit() -> None:
    op = KINDS["gram"]
    inputs = op.make(OpCell("gram", 32, 48, 1), CPU, 0)

    def nearly(tensors: dict[str, list[torch.Tensor]]) -> None:
        op.torch(tensors)
        tensors["out"][0][0, 0, 1].mul_(1.001)

    check(op, nearly, inputs, symmetric=False)
    with pytest.raises(GateRefused, match="symmetric"):
        check(op, nearly, inputs, symmetric=True)
