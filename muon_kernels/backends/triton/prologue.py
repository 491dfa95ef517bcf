"""prologue: momentum, Nesterov, cast and sum of squares in one pass; a second kernel adds up the tiles' sums.

Squares are added in float64 and in an order that depends on the matrix alone. Reads grad and momentum, writes momentum
and out. A matrix of one tile needs no second kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import sum_squares
from .elementwise import TYPES, WARPS, pick_pointer, runs, tile_indices
from .launch import Launch, run

_FREE = ("grads", "momenta", "outs", "first")


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
    """See `muon_kernels.ops.prologue`. One launch, or two, for up to 64 consecutive tensors that look alike."""
    launches = plan(
        grads,
        momenta,
        outs,
        sumsq,
        momentum=momentum,
        nesterov=nesterov,
        ema=ema,
        maximize=maximize,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )
    run(launches, sumsq.device)
    # Autograd does not see writes through addresses; a stale saved tensor must be an error in backward.
    torch.autograd.graph.increment_version(momenta)


def plan(
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
) -> list[Launch]:
    """The launches of one call."""
    if not sumsq.is_contiguous():
        raise ValueError(f"sumsq must be contiguous, got stride {sumsq.stride()}")
    launches = []
    for part in runs("grads, momenta and outs", (grads, momenta, outs)):
        tiles = part.tiles
        one_tile = tiles.count == 1
        partials = sumsq if one_tile else torch.empty(part.count, tiles.count, dtype=torch.float64, device=sumsq.device)
        arguments = {
            "grads": part.addresses[0],
            "momenta": part.addresses[1],
            "outs": part.addresses[2],
            "partials": partials,
            "first": part.first if one_tile else 0,
            "rows": tiles.rows,
            "cols": tiles.cols,
            "strides": tiles.strides,
            "momentum": float(momentum),
            "one_minus_momentum": float(1 - momentum),
            "grad_scale": grad_scale,
            "found_inf": found_inf,
            "NESTEROV": nesterov,
            "EMA": ema,
            "MAXIMIZE": maximize,
            "COUNT": len(part.addresses[0]),
            "GRAD": TYPES[grads[0].dtype],
            "MOMENTUM": TYPES[momenta[0].dtype],
            "OUT": TYPES[outs[0].dtype],
            "ALIGNED": part.aligned,
            "TILE_ROWS": tiles.tile[0],
            "TILE_COLS": tiles.tile[1],
        }
        if tiles.count:
            launches.append(Launch(prologue_kernel, (tiles.count, part.count), arguments, WARPS, free=_FREE))
        if not one_tile:
            launches.append(sum_squares.total(partials, sumsq, part.first))
    return launches


@triton.jit(do_not_specialize=["first"])
def prologue_kernel(
    grads,
    momenta,
    outs,
    partials,
    first,
    rows,
    cols,
    strides,
    momentum,
    one_minus_momentum,
    grad_scale,
    found_inf,
    NESTEROV: tl.constexpr,
    EMA: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    COUNT: tl.constexpr,
    GRAD: tl.constexpr,
    MOMENTUM: tl.constexpr,
    OUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLS: tl.constexpr,
):
    """Program (tile, entry); its sum of squares goes to partials[first + entry, tile]."""
    tile = tl.program_id(0)
    entry = tl.program_id(1)
    row, col, mask = tile_indices(tile, rows, cols, TILE_ROWS, TILE_COLS)
    grad_at = pick_pointer(grads, entry, COUNT, GRAD, ALIGNED) + row * strides[0][0] + col * strides[0][1]
    buffer_at = pick_pointer(momenta, entry, COUNT, MOMENTUM, ALIGNED) + row * strides[1][0] + col * strides[1][1]
    out_at = pick_pointer(outs, entry, COUNT, OUT, ALIGNED) + row * strides[2][0] + col * strides[2][1]

    g = tl.load(grad_at, mask, 0.0).to(tl.float32)
    old = tl.load(buffer_at, mask, 0.0)
    if grad_scale is not None:
        g = tl.div_rn(g, tl.load(grad_scale).to(tl.float32))
    if MAXIMIZE:
        g = -g
    m = old.to(tl.float32)
    m = _lerp(m, g, one_minus_momentum) if EMA else g + momentum * m
    new = m.to(MOMENTUM)
    if found_inf is not None:
        new = tl.where(tl.load(found_inf) != 0, old, new)
    tl.store(buffer_at, new, mask)
    m = new.to(tl.float32)
    if NESTEROV:
        m = _lerp(g, m, momentum) if EMA else g + momentum * m
    if found_inf is not None:
        m = tl.where(tl.load(found_inf) != 0, 0.0, m)
    out = m.to(OUT)
    tl.store(out_at, out, mask)

    square = tl.where(mask, out.to(tl.float64), 0.0)
    total = tl.sum(tl.sum(square * square, axis=1), axis=0)
    tl.store(partials + (first + entry).to(tl.int64) * tl.num_programs(0) + tile, total)


@triton.jit
def _lerp(start, end, weight):
    """As torch.lerp rounds it: from the nearer end."""
    return tl.where(weight < 0.5, start + weight * (end - start), end - (end - start) * (1.0 - weight))
