"""gemm_apply on the Hopper kernel of csrc/sm90: which tensors it takes, integers, launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import extension
from .cuda_scalars import Step
from .device import current_stream, on_device

_PARAM_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""csrc/api.h's DType."""

_STEP = 8
"""Elements of an operand in 16 bytes."""


def check_operands(a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
    """Raises TypeError or ValueError for operands that the kernel cannot read, by name."""
    for name, tensors in (("a", a), ("b", b)):
        for i, tensor in enumerate(tensors):
            if tensor.dtype != torch.float16:
                raise TypeError(f"{name}[{i}] must be float16, got {tensor.dtype}")
            _fields(name, i, tensor)


def check_outs(a: Sequence[Tensor], b: Sequence[Tensor], c: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
    """Raises TypeError or ValueError for a `gemm_add` with results of another dtype that the kernel cannot run."""
    check_operands(a, b)
    if c:
        raise ValueError(f"outs must have the dtype of c, {c[0].dtype}, got {outs[0].dtype}")
    if outs[0].dtype not in _PARAM_DTYPES:
        raise TypeError(f"outs must be float32, bfloat16 or the operands' dtype, got {outs[0].dtype}")
    for i, (left, right, out) in enumerate(zip(a, b, outs, strict=True)):
        if _row_major(left, right, [tuple(out.stride())]) is None:
            raise ValueError(f"outs[{i}] must have the memory order of its operands, got strides {out.stride()}")


def step(
    a: Sequence[Tensor], b: Sequence[Tensor], params: Sequence[Tensor], scales: Sequence[float], step: Step
) -> bool:
    """params[i] <- (1 - lr * weight_decay) params[i] - lr * scales[i] * product i.

    Returns:
        False, and nothing has happened, if the kernel cannot write parameters of their dtype or memory order.
    """
    if params[0].dtype not in _PARAM_DTYPES:
        return False
    rows = [(p.data_ptr(), *p.stride()) for p in params]
    targets: list[tuple[int, ...]] = []
    for left, right in zip(a, b, strict=True):
        own = rows[len(targets) : len(targets) + len(left)]
        row_major = _row_major(left, right, own)
        if row_major is None:
            return False
        targets += _unit_strides(own, row_major)
    _launch(a, b, targets, scales, params[0].dtype, 1.0, False, step)
    return True


def overwrite(a: Sequence[Tensor], b: Sequence[Tensor], outs: Sequence[Tensor], alpha: float) -> None:
    """outs[i] <- alpha * a[i] b[i], for what `check_outs` lets pass."""
    targets: list[tuple[int, ...]] = []
    for left, right, out in zip(a, b, outs, strict=True):
        batch_stride, *strides = out.stride()
        first, step = out.data_ptr(), batch_stride * out.element_size()
        own = [(first + i * step, *strides) for i in range(len(out))]
        targets += _unit_strides(own, bool(_row_major(left, right, own[:1])))
    nothing = (0.0, 0.0, 0, False, 0)
    _launch(a, b, targets, [0.0] * len(targets), outs[0].dtype, alpha, True, nothing)


def _row_major(left: Tensor, right: Tensor, rows: Sequence[tuple[int, ...]]) -> bool | None:
    """Whether results, given by tuples that end with their strides, are to be written row by row; None if they cannot
    be written column by column either. The operand with the rows that are written has unit stride along k."""
    if left.stride(2) == 1 and all(row[-1] == 1 for row in rows):
        return True
    return False if right.stride(1) == 1 and all(row[-2] == 1 for row in rows) else None


def _unit_strides(rows: Sequence[tuple[int, ...]], row_major: bool) -> list[tuple[int, ...]]:
    """Address and strides, with the one that is written along as 1 (it may be anything if that size is 1)."""
    return [(x, r, 1) for x, r, _ in rows] if row_major else [(x, 1, c) for x, _, c in rows]


def _launch(
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    targets: Sequence[tuple[int, ...]],
    scales: Sequence[float],
    dtype: torch.dtype,
    alpha: float,
    overwrite: bool,
    step: Step,
) -> None:
    items = [
        (*left.shape[:2], right.shape[2], left.shape[2], *_fields("a", i, left), *_fields("b", i, right))
        for i, (left, right) in enumerate(zip(a, b, strict=True))
    ]
    device = a[0].device
    with on_device(device):
        stream = current_stream(device)
        extension.load().gemm_apply(items, targets, scales, _PARAM_DTYPES[dtype], alpha, overwrite, *step, stream)


def _fields(name: str, i: int, tensor: Tensor) -> tuple[int, int, int, int]:
    """Address, batch stride, row stride, column stride; a stride that is never taken becomes a legal one."""
    batch, rows, cols = tensor.shape
    batch_stride, row_stride, col_stride = tensor.stride()
    address = tensor.data_ptr()
    if address % 16 == 0 and (batch <= 1 or batch_stride % _STEP == 0):
        if col_stride == 1 and (row_stride % _STEP == 0 or rows == 1):
            return address, batch_stride, row_stride if rows > 1 else -(-cols // _STEP) * _STEP, 1
        if row_stride == 1 and (col_stride % _STEP == 0 or cols == 1):
            return address, batch_stride, 1, col_stride if cols > 1 else -(-rows // _STEP) * _STEP
    raise ValueError(
        f"{name}[{i}] must start on 16 bytes, have one unit stride and others that are multiples of {_STEP}; got shape "
        f"{list(tensor.shape)}, strides {tensor.stride()}, address {address % 16} mod 16"
    )
