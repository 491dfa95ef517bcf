"""The specification of every op in plain torch: exact in float64, any device, the CPU path and the test oracle.

Element-wise arithmetic happens in float32 for 16-bit and float32 tensors and in float64 for float64 ones; a result is
rounded once, when it is stored. Matrix products are torch's own (float32 accumulation for 16-bit operands).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .products import one_by_one, stored_first, summed_first

NAME = "reference"

_SQUARED_AT_A_TIME = 1 << 15
_SMALLEST_HALF = 256
_LARGEST_STRIDED_HALF = 512
"""Halving and mirroring on a CPU with AMX, milliseconds in bfloat16 with a summand, on two threads (on one). Whole,
halved with both lower blocks in one product, halved with three products: 768 x 768 x 768 0.98, 0.79, 1.17 (1.02, 1.08,
1.28); 768 x 3072 x 768 4.0, 2.1, 2.4 (4.2, 3.8, 4.1); 512 x 512 x 512 0.34, 0.40, 0.57. A strided block of 1024 x 1024
is transposed faster if it is contiguous before and after: 2048 x 2048 x 2048 9.1 instead of 11.7 (whole 10.0)."""


def unavailable_reason(op: str, device: torch.device, lists: Sequence[Sequence[Tensor]]) -> str | None:
    """The reference runs everything everywhere."""
    return None


def prologue(
    grads: list[Tensor],
    momenta: list[Tensor],
    outs: list[Tensor],
    sumsq: Tensor,
    *,
    momentum: float,
    nesterov: bool,
    ema: bool,
    maximize: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """See `muon_kernels.ops.prologue`."""
    for i, (grad, buffer, out) in enumerate(zip(grads, momenta, outs, strict=True)):
        # Operations on tensors of one dtype round once by themselves; anything else goes through float32 or float64.
        uniform = grad.dtype == buffer.dtype == out.dtype and grad_scale is None
        math = grad.dtype if uniform else _math_dtype(grad, buffer, out)
        g = grad.to(math)
        if grad_scale is not None:
            g = g / grad_scale.to(math)
        if maximize:
            g = -g
        m = buffer.to(math)
        old = m if found_inf is None else m.clone()
        if ema:
            torch.lerp(m, g, 1 - momentum, out=m)
        else:
            torch.add(g, m, alpha=momentum, out=m)
        if found_inf is not None:
            m = torch.where(found_inf != 0, old, m)
        if m is not buffer:
            m = buffer.copy_(m).to(math)
        if nesterov:
            m = torch.lerp(g, m, momentum) if ema else torch.add(g, m, alpha=momentum)
        if found_inf is not None:
            m = torch.where(found_inf != 0, torch.zeros_like(m), m)
        out.copy_(m)
        sumsq[i] = _sum_of_squares(out)


def sum_squares(xs: list[Tensor], sumsq: Tensor) -> None:
    """See `muon_kernels.ops.sum_squares`."""
    for i, matrix in enumerate(matrix for x in xs for matrix in x.unbind(0)):
        sumsq[i] = _sum_of_squares(matrix)


def normalize(xs: list[Tensor], sumsq: Tensor, outs: list[Tensor], *, eps: float, safety_factor: float) -> None:
    """See `muon_kernels.ops.normalize`."""
    norm = sumsq.sqrt() * safety_factor
    scale = norm.clamp(min=eps).reciprocal()
    scale = torch.where(norm < torch.finfo(torch.float32).tiny, 0.0, scale)
    scale = torch.where(norm.isfinite(), scale, torch.nan)
    first = 0
    for x, out in zip(xs, outs, strict=True):
        factor = scale[first : first + x.shape[0], None, None].to(_math_dtype(x, out))
        torch.mul(x.to(factor.dtype), factor, out=out)
        first += x.shape[0]


def symm_gemm(
    a: list[Tensor], b: list[Tensor], c: list[Tensor], outs: list[Tensor], *, alpha: float, beta: float, delta: float
) -> None:
    """See `muon_kernels.ops.symm_gemm`. Off the CPU both triangles are computed: symmetric up to rounding."""
    if not outs[0].is_cpu:
        gemm_add(a, b, c, outs, alpha=alpha, beta=beta)
    else:
        for left, right, term, out in _matrices(a, b, c, outs):
            _symmetric_product(left, right, term, out, alpha, beta)
    if delta:
        for out in outs:
            out.diagonal(dim1=-2, dim2=-1).add_(delta)


def gemm_add(
    a: list[Tensor], b: list[Tensor], c: list[Tensor], outs: list[Tensor], *, alpha: float, beta: float
) -> None:
    """See `muon_kernels.ops.gemm_add`."""
    if outs[0].dtype != a[0].dtype:
        products = [torch.empty_like(out, dtype=a[0].dtype) for out in outs]
        gemm_add(a, b, c, products, alpha=alpha, beta=beta)
        for out, product in zip(outs, products, strict=True):
            out.copy_(product)
    elif outs[0].is_cpu:
        for left, right, term, out in _matrices(a, b, c, outs):
            _product(left, right, term, out, alpha, beta)
    else:
        for i, out in enumerate(outs):
            torch.baddbmm(c[i] if c else out, a[i], b[i], alpha=alpha, beta=beta if c else 0, out=out)


def apply(
    params: list[Tensor],
    updates: list[Tensor],
    *,
    lr: Tensor,
    weight_decay: float,
    scales: list[float],
    found_inf: Tensor | None,
) -> None:
    """See `muon_kernels.ops.apply`."""
    # One on the CPU is read here, in double; one on the device stays there, so that nothing waits for it.
    rate = lr.item() if lr.is_cpu else lr
    for param, update, scale in zip(params, updates, scales, strict=True):
        math = _math_dtype(param)
        old = param.clone() if found_inf is not None else param
        step = torch.as_tensor(rate * scale, dtype=math, device=lr.device)
        new = param.to(math).mul_(1 - rate * weight_decay).addcmul_(update.to(math), step, value=-1)
        if found_inf is not None:
            new = torch.where(found_inf != 0, old, new)
        if new is not param:
            param.copy_(new)


def _matrices(
    a: list[Tensor], b: list[Tensor], c: list[Tensor], outs: list[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor]]:
    """The problems' matrices one by one: a batched CPU product may give a matrix other bits than it gets alone."""
    for i, out in enumerate(outs):
        terms = c[i].unbind(0) if c else [None] * out.shape[0]
        yield from zip(a[i].unbind(0), b[i].unbind(0), terms, out.unbind(0), strict=True)


def _product(a: Tensor, b: Tensor, c: Tensor | None, out: Tensor, alpha: float, beta: float) -> None:
    if a.dtype == torch.bfloat16 and a.shape[1] % 32:
        # For some k (33, 34, 80, ...) torch's CPU product on AMX multiplies what lies behind a row by zero, which
        # is NaN if that is (torch 2.13).
        a, b = a.contiguous(), b.contiguous()
    torch.addmm(out if c is None else c, a, b, alpha=alpha, beta=0 if c is None else beta, out=out)


def _symmetric_product(a: Tensor, b: Tensor, c: Tensor | None, out: Tensor, alpha: float, beta: float) -> None:
    """Recursive halves: the upper diagonal block, and all rows below it, whose left part is the upper right one's
    transpose."""
    half = out.shape[0] // 2
    if half < _SMALLEST_HALF:
        _product(a, b, c, out, alpha, beta)
        return
    top, bottom = slice(half), slice(half, None)
    _symmetric_product(a[top], b[:, top], None if c is None else c[top, top], out[top, top], alpha, beta)
    _product(a[bottom], b, None if c is None else c[bottom], out[bottom], alpha, beta)
    lower = out[bottom, top]
    out[top, bottom].copy_(lower.mT if half <= _LARGEST_STRIDED_HALF else lower.contiguous().mT.contiguous())


def _sum_of_squares(matrix: Tensor) -> Tensor:
    """In float64: the same bits in `prologue` and in `sum_squares`, whatever else is in the call.

    On a CPU some rows at a time, so that their float64 copy stays in the cache: 2.5 times faster on one core.
    """
    if not matrix.is_cpu:
        return torch.linalg.vector_norm(matrix, dim=-1, dtype=torch.float64).square().sum()
    total = torch.zeros((), dtype=torch.float64)
    for rows in matrix.split(max(1, _SQUARED_AT_A_TIME // max(1, matrix.shape[-1]))):
        flat = rows.double().reshape(-1)
        total += torch.dot(flat, flat)
    return total


def _math_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


OPS: dict[str, Callable[..., None]] = {
    "prologue": prologue,
    "sum_squares": sum_squares,
    "normalize": summed_first(sum_squares, normalize),
    "symm_gemm": symm_gemm,
    "gemm_add": gemm_add,
    "chains": one_by_one(symm_gemm, gemm_add),
    "gemm_apply": stored_first(gemm_add, apply),
    "apply": apply,
}
