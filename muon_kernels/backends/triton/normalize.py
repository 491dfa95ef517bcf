"""normalize: out <- x / max(safety_factor sqrt(sumsq), eps), one launch for each entry of the problem list."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .elementwise import WARPS, tile_indices, tiles
from .launch import Launch, run

_TINY = tl.constexpr(1.1754943508222875e-38)
"""float32's smallest normal number."""


def normalize(xs: list[Tensor], sumsq: Tensor, outs: list[Tensor], *, eps: float, safety_factor: float) -> None:
    """See `muon_kernels.ops.normalize`."""
    run(plan(xs, sumsq, outs, eps=eps, safety_factor=safety_factor), sumsq.device)


def plan(xs: list[Tensor], sumsq: Tensor, outs: list[Tensor], *, eps: float, safety_factor: float) -> list[Launch]:
    """The launches of one call."""
    launches = []
    first = 0
    for x, out in zip(xs, outs, strict=True):
        if x.numel():
            matrix = tiles(x.shape[1:], x.stride()[1:], out.stride()[1:])
            arguments = {
                "x": x,
                "out": out,
                "sumsq": sumsq.contiguous(),
                "first": first,
                "rows": matrix.rows,
                "cols": matrix.cols,
                "x_strides": (x.stride(0), *matrix.strides[0]),
                "out_strides": (out.stride(0), *matrix.strides[1]),
                "eps": float(eps),
                "safety_factor": float(safety_factor),
                "TILE_ROWS": matrix.tile[0],
                "TILE_COLS": matrix.tile[1],
            }
            grid = (x.shape[0] * matrix.count,)
            launches.append(Launch(normalize_kernel, grid, arguments, WARPS, free=("first",)))
        first += x.shape[0]
    return launches


@triton.jit(do_not_specialize=["first"])
def normalize_kernel(
    x,
    out,
    sumsq,
    first,
    rows,
    cols,
    x_strides,
    out_strides,
    eps,
    safety_factor,
    TILE_ROWS: tl.constexpr,
    TILE_COLS: tl.constexpr,
):
    """One program computes one tile; a matrix's tiles are neighbours."""
    tiles = tl.cdiv(rows, TILE_ROWS) * tl.cdiv(cols, TILE_COLS)
    tile = tl.program_id(0) % tiles
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    norm = tl.sqrt(tl.load(sumsq + first + batch)) * safety_factor
    scale = 1.0 / tl.maximum(norm, eps)
    scale = tl.where(norm < _TINY, 0.0, scale)
    # The comparison is false for NaN and for infinity.
    scale = tl.where(norm < float("inf"), scale, float("nan")).to(tl.float32)

    row, col, mask = tile_indices(tile, rows, cols, TILE_ROWS, TILE_COLS)
    value = tl.load(x + batch * x_strides[0] + row * x_strides[1] + col * x_strides[2], mask, 0.0).to(tl.float32)
    value = (value * scale).to(out.dtype.element_ty)
    tl.store(out + batch * out_strides[0] + row * out_strides[1] + col * out_strides[2], value, mask)
