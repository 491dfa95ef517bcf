"""sum_squares: the squares of every matrix, added up in parts by one launch and in all by a second.

Squares are added in float64 and in an order that depends on the matrix alone, whatever else is in its batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementwise import WARPS, tile_indices, tiles
from .launch import Launch, run

MOST_PARTS = 256
"""Of a matrix: every program of `normalize` adds them up, a thread one of them."""

TOTAL_BLOCK = 1024
"""Parts that `total_kernel` takes at a time."""


def sum_squares(xs: list[Tensor], sumsq: Tensor) -> None:
    """See `muon_kernels.ops.sum_squares`. Two launches for each entry of the problem list."""
    run(plan(xs, sumsq), sumsq.device)


def plan(xs: list[Tensor], sumsq: Tensor) -> list[Launch]:
    """The launches of one call."""
    launches = []
    first = 0
    for x in xs:
        if len(x):
            partials = torch.empty((len(x), parts(x)), dtype=torch.float64, device=x.device)
            if x.numel():
                launches.append(sum_parts(x, partials))
            launches.append(total(partials, sumsq, first))
        first += len(x)
    return launches


def parts(x: Tensor) -> int:
    """In how many parts `sum_parts` adds up the squares of each matrix of `x` [batch, rows, cols]."""
    count = tiles(x.shape[1:], x.stride()[1:]).count
    return triton.cdiv(count, max(1, triton.cdiv(count, MOST_PARTS)))


def sum_parts(x: Tensor, partials: Tensor) -> Launch:
    """partials[i] <- sums of squares of x[i], whose sum is its squared norm: float64 [batch, parts(x)]; x not empty."""
    matrix = tiles(x.shape[1:], x.stride()[1:])
    count = parts(x)
    arguments = {
        "x": x,
        "partials": partials,
        "parts": count,
        "share": triton.cdiv(matrix.count, count),
        "rows": matrix.rows,
        "cols": matrix.cols,
        "x_strides": (x.stride(0), *matrix.strides[0]),
        "TILE_ROWS": matrix.tile[0],
        "TILE_COLS": matrix.tile[1],
    }
    return Launch(sum_squares_kernel, (len(x) * count,), arguments, WARPS, free=("parts", "share"))


def total(partials: Tensor, sumsq: Tensor, first: int) -> Launch:
    """sumsq[first + i] <- the sum of partials[i], for partials float64 [count, parts]."""
    count, parts = partials.shape
    arguments = {
        "partials": partials,
        "sumsq": sumsq,
        "first": first,
        "stride": sumsq.stride(0),
        "parts": parts,
        "BLOCK": TOTAL_BLOCK,
    }
    return Launch(total_kernel, (count,), arguments, warps=4, free=("first", "stride", "parts"))


@triton.jit(do_not_specialize=["parts", "share"])
def sum_squares_kernel(
    x, partials, parts, share, rows, cols, x_strides, TILE_ROWS: tl.constexpr, TILE_COLS: tl.constexpr
):
    """One program adds up `share` tiles that follow each other; a matrix's programs are neighbours. Tiles behind the
    last one are empty."""
    part = tl.program_id(0) % parts
    batch = (tl.program_id(0) // parts).to(tl.int64)
    squares = tl.zeros((TILE_ROWS, TILE_COLS), tl.float64)
    for i in range(share):
        row, col, mask = tile_indices(part * share + i, rows, cols, TILE_ROWS, TILE_COLS)
        value = tl.load(x + batch * x_strides[0] + row * x_strides[1] + col * x_strides[2], mask, 0.0).to(tl.float64)
        squares += value * value
    tl.store(partials + tl.program_id(0), tl.sum(squares))


@triton.jit(do_not_specialize=["first", "stride", "parts"])
def total_kernel(partials, sumsq, first, stride, parts, BLOCK: tl.constexpr):
    """Program i writes sumsq[first + i]."""
    entry = tl.program_id(0).to(tl.int64)
    sums = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, parts, BLOCK):
        part = start + tl.arange(0, BLOCK)
        sums += tl.load(partials + entry * parts + part, part < parts, 0.0)
    tl.store(sumsq + (first + entry) * stride, tl.sum(sums, axis=0))
