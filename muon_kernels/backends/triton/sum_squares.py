"""sum_squares: the squares of every tile, one launch for each entry of the problem list; torch adds up the tiles."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementwise import WARPS, tile_indices, tiles
from .launch import Launch, run


def sum_squares(xs: list[Tensor], sumsq: Tensor) -> None:
    """See `muon_kernels.ops.sum_squares`."""
    first = 0
    for x in xs:
        own = sumsq[first : first + len(x)]
        first += len(x)
        if not x.numel():
            own.zero_()
            continue
        matrix = tiles(x.shape[1:], x.stride()[1:])
        partials = torch.empty((len(x), matrix.count), dtype=torch.float64, device=x.device)
        arguments = {
            "x": x,
            "partials": partials,
            "rows": matrix.rows,
            "cols": matrix.cols,
            "x_strides": (x.stride(0), *matrix.strides[0]),
            "TILE_ROWS": matrix.tile[0],
            "TILE_COLS": matrix.tile[1],
        }
        run([Launch(sum_squares_kernel, (len(x) * matrix.count,), arguments, WARPS)], x.device)
        torch.sum(partials, dim=1, out=own)


@triton.jit
def sum_squares_kernel(x, partials, rows, cols, x_strides, TILE_ROWS: tl.constexpr, TILE_COLS: tl.constexpr):
    """One program computes one tile; a matrix's tiles are neighbours."""
    tiles = tl.cdiv(rows, TILE_ROWS) * tl.cdiv(cols, TILE_COLS)
    tile = tl.program_id(0) % tiles
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    row, col, mask = tile_indices(tile, rows, cols, TILE_ROWS, TILE_COLS)
    value = tl.load(x + batch * x_strides[0] + row * x_strides[1] + col * x_strides[2], mask, 0.0).to(tl.float64)
    tl.store(partials + tl.program_id(0), tl.sum(value * value))
