"""A parameter as matrices: a list of strided 2-D views, never a copy. The optimizer and the kernels see only the list.

A layout is one of

- None: the parameter is one matrix and must be 2-D;
- "flatten": [out, in, ...] as one matrix [out, in * ...], the usual choice for convolutions;
- "conv_batched": [out, in, ...] as one matrix [out, in] per position of the trailing dimensions (timm's
  conv_mode="batched"); the step of each is scaled by positions ** -0.5, so that the whole moves as far as one matrix;
- "transposed": [in, out] as one matrix [out, in] (GPT-2's Conv1D in transformers), for rules that scale lr by shape;
- "batch": [..., rows, cols] as one matrix per leading index (stacked experts);
- "rows:k", "cols:k", "grid:rxc": equal blocks of a 2-D parameter (heads of a projection, shards, tiles);
- "qkv": "rows:3";
- "shards": what this rank holds of a DTensor as one matrix, stepped without the other ranks; a plain tensor is its own;
- "auto_qkv": "rows:3" if there are three times as many rows as columns, otherwise one matrix;
- a sequence of row counts that sum to the number of rows (fused projections of unequal sizes);
- a function that returns 2-D views which together cover the tensor it is given.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Layout = str | Sequence[int] | Callable[[Tensor], Sequence[Tensor]] | None

NAMES = ("flatten", "conv_batched", "batch", "transposed", "qkv", "auto_qkv", "shards")

_BLOCKS = re.compile(r"(?P<kind>rows|cols|grid):(?P<first>[1-9]\d*)(x(?P<second>[1-9]\d*))?")


def freeze_layout(layout: Layout) -> Layout:
    """The layout in a form that a checkpoint can hold; raises for one that no tensor could have.

    Raises:
        ValueError: an unknown name, or row counts that are not positive.
        TypeError: something that is no layout.
    """
    if layout is None or callable(layout):
        return layout
    if isinstance(layout, str):
        if layout not in NAMES and _block_counts(layout) is None:
            options = ", ".join((*NAMES, "rows:k", "cols:k", "grid:rxc"))
            raise ValueError(f"layout must be None, a sequence, a function or one of {options}, got {layout!r}")
        return layout
    if not isinstance(layout, Sequence) or not all(isinstance(n, int) and not isinstance(n, bool) for n in layout):
        raise TypeError(f"layout must be None, a name, a sequence of row counts or a function, got {layout!r}")
    counts = tuple(int(n) for n in layout)
    if not counts or min(counts) < 1:
        raise ValueError(f"layout must hold positive row counts, got {list(counts)}")
    return counts


def is_whole(layout: Layout) -> bool:
    """Whether the layout is no cut of a 2-D parameter into blocks."""
    return layout in (None, "flatten", "conv_batched", "batch", "transposed")


def split(tensor: Tensor, layout: Layout) -> list[Tensor]:
    """The matrices of a tensor, as 2-D views of it, always in the same order.

    "flatten" merges dimensions in the order in which they lie in memory, which changes a polar factor's columns only in
    their order; a parameter, its gradient and its momentum must therefore agree in that order.

    Raises:
        ValueError: the tensor has no such layout; the message names the layout, the shape and what it needs.
    """
    if layout is None:
        if tensor.ndim != 2:
            raise ValueError(
                f"Muon only supports 2D parameters whereas we found a parameter with size: {list(tensor.shape)}; "
                "say how it is made of matrices with layout=, or give it in a group with use_muon=False"
            )
        return [tensor]
    if callable(layout):
        return _checked(list(layout(tensor)), tensor, layout)
    if layout in ("flatten", "conv_batched", "batch"):
        if tensor.ndim < 2:
            raise _misfit(layout, tensor, "at least two dimensions")
        if layout == "flatten":
            return [_flatten(tensor)]
        if layout == "batch":
            return _leading(tensor)
        return _leading(tensor.permute(*range(2, tensor.ndim), 0, 1))
    if tensor.ndim != 2:
        raise _misfit(layout, tensor, "two dimensions")
    if layout == "shards":
        return [tensor]
    if layout == "transposed":
        return [tensor.mT]
    rows, cols = tensor.shape
    if not isinstance(layout, str):
        if sum(layout) != rows:
            raise _misfit(layout, tensor, f"{sum(layout)} rows")
        return list(tensor.split(list(layout)))
    down, across = _counts(layout, rows, cols)
    if rows % down or cols % across:
        raise _misfit(layout, tensor, f"rows divisible by {down} and columns by {across}")
    return [block for band in tensor.split(max(rows // down, 1)) for block in band.split(max(cols // across, 1), dim=1)]


def step_factor(shape: Sequence[int], layout: Layout) -> float:
    """What the layout multiplies the step of each of its matrices by."""
    return math.prod(shape[2:]) ** -0.5 if layout == "conv_batched" else 1.0


def ordered_like(p: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` itself, or a copy with its dimensions in the order in which the parameter's lie in memory."""
    if tensor.stride() == p.stride():
        return tensor
    ordered = torch.empty_like(p, dtype=tensor.dtype, memory_format=torch.preserve_format)
    return tensor if ordered.stride() == tensor.stride() else ordered.copy_(tensor)


def _counts(layout: str, rows: int, cols: int) -> tuple[int, int]:
    """Blocks down and across."""
    if layout == "qkv":
        return 3, 1
    if layout == "auto_qkv":
        return (3 if rows == 3 * cols else 1), 1
    counts = _block_counts(layout)
    assert counts is not None, layout
    return counts


def _block_counts(layout: str) -> tuple[int, int] | None:
    match = _BLOCKS.fullmatch(layout)
    if match is None or (match["kind"] == "grid") != (match["second"] is not None):
        return None
    first = int(match["first"])
    return {"rows": (first, 1), "cols": (1, first), "grid": (first, int(match["second"] or 1))}[match["kind"]]


def _flatten(tensor: Tensor) -> Tensor:
    order = sorted(range(1, tensor.ndim), key=tensor.stride, reverse=True)
    try:
        return tensor.permute(0, *order).view(tensor.shape[0], math.prod(tensor.shape[1:]))
    except RuntimeError:
        raise _misfit("flatten", tensor, f"trailing dimensions that merge, got strides {tensor.stride()}") from None


def _leading(tensor: Tensor) -> list[Tensor]:
    """Every matrix over the leading dimensions."""
    matrices = [tensor]
    for _ in range(tensor.ndim - 2):
        matrices = [view for matrix in matrices for view in matrix.unbind(0)]
    return matrices


def _checked(matrices: list[Tensor], tensor: Tensor, layout: Layout) -> list[Tensor]:
    storage = tensor.untyped_storage().data_ptr()
    for i, matrix in enumerate(matrices):
        if matrix.ndim != 2 or matrix.untyped_storage().data_ptr() != storage:
            raise _misfit(layout, tensor, f"2-D views of the tensor, got {list(matrix.shape)} at index {i}")
    if sum(m.numel() for m in matrices) != tensor.numel():
        raise _misfit(layout, tensor, "views that cover the tensor once")
    return matrices


def _misfit(layout: Any, tensor: Tensor, needed: str) -> ValueError:
    name = getattr(layout, "__name__", layout)
    return ValueError(f"layout {name!r} needs {needed}, got a parameter of shape {list(tensor.shape)}")
