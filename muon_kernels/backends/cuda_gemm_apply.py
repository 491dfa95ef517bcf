"""gemm_apply on the Hopper kernel of csrc/sm90: which tensors it takes, integers, launch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .. import extension
from .device import on_device

_PARAM_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""csrc/api.h's DType."""

_STEP = 8
"""Elements of an operand in 16 bytes."""


Step = tuple[float, float, int, bool, int]
"""Weight decay, lr on the host, lr on the device and whether that is float64, found_inf; see csrc/bindings.cpp."""


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
    why = reason(a, b, [matrix for out in outs for matrix in out.unbind(0)])
    if why is not None:
        raise ValueError(why)


def reason(a: Sequence[Tensor], b: Sequence[Tensor], params: Sequence[Tensor]) -> str | None:
    """Why the kernel cannot write these tensors, or None."""
    if params[0].dtype not in _PARAM_DTYPES:
        return f"results are {params[0].dtype}, not float32 or bfloat16"
    for left, right, own in _entries(a, b, params):
        by_row = left.stride(2) == 1 and all(p.stride(1) == 1 for p in own)
        by_col = right.stride(1) == 1 and all(p.stride(0) == 1 for p in own)
        if not (by_row or by_col):
            return "operands and results are not in one memory order"
    return None


def step(
    a: Sequence[Tensor], b: Sequence[Tensor], params: Sequence[Tensor], scales: Sequence[float], step: Step
) -> None:
    """params[i] <- (1 - lr * weight_decay) params[i] - lr * scales[i] * product i."""
    _launch(a, b, params, scales, 1.0, False, step)


def overwrite(a: Sequence[Tensor], b: Sequence[Tensor], outs: Sequence[Tensor], alpha: float) -> None:
    """outs[i] <- alpha * product i."""
    _launch(a, b, outs, [0.0] * len(outs), alpha, True, (0.0, 0.0, 0, False, 0))


def _launch(
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    params: Sequence[Tensor],
    scales: Sequence[float],
    alpha: float,
    overwrite: bool,
    step: Step,
) -> None:
    items = []
    targets: list[tuple[int, int, int]] = []
    for i, (left, right, own) in enumerate(_entries(a, b, params)):
        batch, m, k = left.shape
        items.append((batch, m, right.shape[2], k, *_fields("a", i, left), *_fields("b", i, right)))
        if left.stride(2) == 1 and all(p.stride(1) == 1 for p in own):
            targets += [(p.data_ptr(), p.stride(0), 1) for p in own]
        else:
            targets += [(p.data_ptr(), 1, p.stride(1)) for p in own]
    device = params[0].device
    with on_device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        dtype = _PARAM_DTYPES[params[0].dtype]
        extension.load().gemm_apply(items, targets, scales, dtype, alpha, overwrite, *step, stream)


def _entries(
    a: Sequence[Tensor], b: Sequence[Tensor], params: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Sequence[Tensor]]]:
    """The operands of every entry and its matrices' parameters."""
    first = 0
    for left, right in zip(a, b, strict=True):
        yield left, right, params[first : first + len(left)]
        first += len(left)


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
