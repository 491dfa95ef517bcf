"""sum_squares: the squares of every tile, one launch for each entry of the problem list; torch adds up the tiles."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementwise import WARPS, runs, tile_indices
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
        (part,) = runs("xs", ((x[0],),))
        tile_rows, tile_cols = part.tile
        partials = torch.empty((len(x), part.tiles), dtype=torch.float64, device=x.device)
        arguments = {
            "x": x,
            "partials": partials,
            "rows": part.rows,
            "cols": part.cols,
            "x_strides": (x.stride(0), *part.strides[0]),
            "TILE_ROWS": tile_rows,
            "TILE_COLS": tile_cols,
        }
        run([Launch(sum_squares_kernel, (len(x) * part.tiles,), arguments, WARPS)], x.device)
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
