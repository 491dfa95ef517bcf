"""symm_gemm and gemm_add on the Hopper kernels of csrc/sm90: layout rules, integers, launch.

The copy engine that feeds the tensor cores moves 16 bytes at a time: it wants 16-bit elements, one unit stride a matrix
with a size that is a multiple of 8 elements, and addresses and all other strides in multiples of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import extension
from . import cuda_gemm_apply
from .device import capability, current_stream, on_device

_CAPABILITY = 90
DTYPES = {torch.bfloat16: 1, torch.float16: 2}
"""csrc/api.h's DType."""

_STEP = 8
"""Elements in 16 bytes."""


def refusal(op: str, device: torch.device, lists: Sequence[Sequence[Tensor]]) -> str | None:
    """Why the product kernels cannot take these lists on this device, or None."""
    sm = capability(device)
    if sm != _CAPABILITY:
        return f"compute capability {sm // 10}.{sm % 10} is not 9.0"
    try:
        if lists and op == "chains":
            _check_workspace(*lists[0])
        elif lists and op == "gemm_apply":
            cuda_gemm_apply.check_operands(*lists[:2])
        elif lists:
            a, b, c, outs = lists
            if op == "gemm_add" and outs[0].dtype != a[0].dtype:
                cuda_gemm_apply.check_outs(a, b, c, outs)
            else:
                _items(op == "symm_gemm", a, b, c, outs)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def symm_gemm(
    a: list[Tensor], b: list[Tensor], c: list[Tensor], outs: list[Tensor], *, alpha: float, beta: float, delta: float
) -> None:
    """See `muon_kernels.ops.symm_gemm`. One launch for up to 8 entries with the same memory orders."""
    launch(True, a, b, c, outs, alpha=alpha, beta=beta, delta=delta)


def gemm_add(
    a: list[Tensor], b: list[Tensor], c: list[Tensor], outs: list[Tensor], *, alpha: float, beta: float
) -> None:
    """See `muon_kernels.ops.gemm_add`. One launch for up to 8 entries with the same memory orders."""
    launch(False, a, b, c, outs, alpha=alpha, beta=beta)


def launch(
    symmetric: bool,
    a: list[Tensor],
    b: list[Tensor],
    c: list[Tensor],
    outs: list[Tensor],
    *,
    alpha: float,
    beta: float,
    delta: float = 0.0,
    tile: int = -1,
) -> None:
    """out[i] = alpha * a[i] b[i] + beta * c[i] + delta * I for every entry.

    Args:
        symmetric: the results are symmetric; compute and mirror one triangle. `delta` needs it.
        tile: the tile shape, an index into csrc/sm90/shapes.cuh; -1 lets choose_gemm_tile decide.

    Raises:
        TypeError: a dtype that is not one 16-bit type for all lists.
        ValueError: a tensor whose address or strides break the rules above.
    """
    items = _items(symmetric, a, b, c, outs)
    device = outs[0].device
    with on_device(device):
        stream = current_stream(device)
        extension.load().gemm(symmetric, items, DTYPES[outs[0].dtype], alpha, beta, delta, tile, stream)


def _check_workspace(workspace: Tensor) -> None:
    if workspace.dtype not in DTYPES:
        raise TypeError(f"workspace must be bfloat16 or float16, got {workspace.dtype}")
    if workspace.data_ptr() % 16:
        raise ValueError(f"workspace must start on 16 bytes, got address {workspace.data_ptr() % 16} mod 16")


def _items(
    symmetric: bool,
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    c: Sequence[Tensor],
    outs: Sequence[Tensor],
) -> list[tuple[int, ...]]:
    """The rows of 20 integers that csrc/bindings.cpp reads, one per entry."""
    items: list[tuple[int, ...]] = []
    for i, out in enumerate(outs):
        for name, tensor in (("a", a[i]), ("b", b[i]), ("outs", out), *((("c", c[i]),) if c else ())):
            if tensor.dtype not in DTYPES or tensor.dtype != out.dtype:
                raise TypeError(f"{name}[{i}] must be bfloat16 or float16, as all other tensors, got {tensor.dtype}")
        batch, m, k = a[i].shape
        if k == 0:
            raise ValueError(f"a[{i}] must have at least one column, got {list(a[i].shape)}")
        order = _view("outs", i, out)
        addend = _view("c", i, c[i]) if c else (0, 0, 0, 1)
        if c and not symmetric and (addend[3] == 1) != (order[3] == 1):
            raise ValueError(
                f"c[{i}] must have the memory order of outs[{i}], strides {out.stride()}, got {c[i].stride()}"
            )
        items.append((batch, m, out.shape[2], k, *_view("a", i, a[i]), *_view("b", i, b[i]), *addend, *order))
    return items


def _view(name: str, i: int, tensor: Tensor) -> tuple[int, int, int, int]:
    """Address, batch stride, row stride, column stride; a stride that is never taken becomes a legal one."""
    batch, rows, cols = tensor.shape
    batch_stride, row_stride, col_stride = tensor.stride()
    address = tensor.data_ptr()
    if address % 16 == 0 and (batch <= 1 or batch_stride % _STEP == 0):
        if col_stride == 1 and cols % _STEP == 0 and (row_stride % _STEP == 0 or rows == 1):
            return address, batch_stride, row_stride if rows > 1 else cols, 1
        if row_stride == 1 and rows % _STEP == 0 and (col_stride % _STEP == 0 or cols == 1):
            return address, batch_stride, 1, col_stride if cols > 1 else rows
    raise ValueError(
        f"{name}[{i}] must start on 16 bytes, have one unit stride with a size that is a multiple of {_STEP}, and "
        f"other strides that are multiples of {_STEP}; got shape {list(tensor.shape)}, strides {tensor.stride()}, "
        f"address {address % 16} mod 16"
    )
