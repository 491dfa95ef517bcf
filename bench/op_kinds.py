"""The ops as they are measured: inputs, our call, and the same with torch's own routines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from muon_kernels import ops

from .cells import OpCell
from .timing import random_normal

NARROW = torch.float16
WIDE = torch.float32
A, B, C = 3.4445, -4.7750, 2.0315
LR, MOMENTUM, DECAY = 0.02, 0.95, 0.1

Tensors = dict[str, list[Tensor]]


@dataclass(frozen=True)
class OpKind:
    """One way to call an op.

    results: names of the tensors it writes.
    fresh: those of them that it does not read.
    symmetric: its result must be symmetric to the bit.
    """

    make: Callable[[OpCell, torch.device, int], Tensors]
    ours: Callable[[Tensors], None]
    torch: Callable[[Tensors], object]
    results: tuple[str, ...]
    fresh: tuple[str, ...]
    symmetric: bool = False


def _batch(cell: OpCell, device: torch.device, seed: int, rows: int, cols: int) -> list[Tensor]:
    """Entries of size about 1 / sqrt(cols), as in a normalised matrix."""
    return [(random_normal(device, (cell.count, rows, cols), torch.float32, seed) / cols**0.5).to(NARROW)]


def _list(cell: OpCell, device: torch.device, seed: int, dtype: torch.dtype) -> list[Tensor]:
    return [random_normal(device, (cell.rows, cell.cols), dtype, seed + i) for i in range(cell.count)]


def _make_gram(cell: OpCell, device: torch.device, seed: int) -> Tensors:
    x = _batch(cell, device, seed, cell.rows, cell.cols)
    return {"x": x, "out": _batch(cell, device, seed + 1, cell.rows, cell.rows)}


def _make_polynomial(cell: OpCell, device: torch.device, seed: int) -> Tensors:
    (a,) = _batch(cell, device, seed, cell.rows, cell.rows)
    return {"a": [(a + a.mT) / 2], "out": [torch.empty_like(a)]}


def _make_final(cell: OpCell, device: torch.device, seed: int) -> Tensors:
    x, b = (_batch(cell, device, seed + i, cell.rows, cols) for i, cols in enumerate((cell.cols, cell.rows)))
    return {"x": x, "b": b, "out": [torch.empty_like(x[0])]}


def _make_prologue(cell: OpCell, device: torch.device, seed: int) -> Tensors:
    grads, momenta = (_list(cell, device, seed + i * cell.count, WIDE) for i in range(2))
    sumsq = torch.empty(cell.count, dtype=torch.float64, device=device)
    return {"g": grads, "m": momenta, "out": [g.to(torch.bfloat16) for g in grads], "sumsq": [sumsq]}


def _make_normalize(cell: OpCell, device: torch.device, seed: int) -> Tensors:
    x = random_normal(device, (cell.count, cell.rows, cell.cols), torch.bfloat16, seed)
    sumsq = torch.linalg.vector_norm(x, dim=(-2, -1), dtype=torch.float64).square()
    return {"x": [x], "sumsq": [sumsq], "out": [torch.empty_like(x, dtype=NARROW)]}


def _make_apply(cell: OpCell, device: torch.device, seed: int) -> Tensors:
    return {"p": _list(cell, device, seed, WIDE), "u": _list(cell, device, seed + cell.count, NARROW)}


def _torch_prologue(t: Tensors) -> None:
    torch._foreach_lerp_(t["m"], t["g"], 1 - MOMENTUM)
    torch._foreach_copy_(t["out"], torch._foreach_lerp(t["g"], t["m"], MOMENTUM))
    t["sumsq"][0].copy_(torch.stack(torch._foreach_norm(t["out"], 2, torch.float32)).double().square())


def _torch_apply(t: Tensors) -> None:
    torch._foreach_mul_(t["p"], 1 - LR * DECAY)
    torch._foreach_add_(t["p"], t["u"], alpha=-LR)


KINDS = {
    "gram": OpKind(
        _make_gram,
        lambda t: ops.symm_gemm(t["x"], [t["x"][0].mT], [], t["out"]),
        lambda t: torch.bmm(t["x"][0], t["x"][0].mT, out=t["out"][0]),
        ("out",),
        ("out",),
        symmetric=True,
    ),
    "polynomial": OpKind(
        _make_polynomial,
        lambda t: ops.symm_gemm(t["a"], t["a"], t["a"], t["out"], alpha=C, beta=B),
        lambda t: torch.baddbmm(t["a"][0], t["a"][0], t["a"][0], alpha=C, beta=B, out=t["out"][0]),
        ("out",),
        ("out",),
        symmetric=True,
    ),
    "final": OpKind(
        _make_final,
        lambda t: ops.gemm_add(t["b"], t["x"], t["x"], t["out"], beta=A),
        lambda t: torch.baddbmm(t["x"][0], t["b"][0], t["x"][0], beta=A, out=t["out"][0]),
        ("out",),
        ("out",),
    ),
    "prologue": OpKind(
        _make_prologue,
        lambda t: ops.prologue(t["g"], t["m"], t["out"], t["sumsq"][0], momentum=MOMENTUM),
        _torch_prologue,
        ("m", "out", "sumsq"),
        ("out", "sumsq"),
    ),
    "normalize": OpKind(
        _make_normalize,
        lambda t: ops.normalize(t["x"], t["sumsq"][0], t["out"], eps=1e-7),
        lambda t: torch.mul(t["x"][0], t["sumsq"][0].rsqrt().float()[:, None, None], out=t["out"][0]),
        ("out",),
        ("out",),
    ),
    "apply": OpKind(
        _make_apply,
        lambda t: ops.apply(t["p"], t["u"], lr=LR, weight_decay=DECAY, scales=[1.0] * len(t["p"])),
        _torch_apply,
        ("p",),
        (),
    ),
}
