"""normalize: out <- x / max(safety_factor sqrt(sumsq), eps), one launch for each entry of the problem list.

Without sums there is one more, which adds up squares in parts; every program adds up the parts of its matrix. A chain
waits for both, so that they are planned once for all tensors that look alike.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import sum_squares
from .elementwise import WARPS, tile_indices, tiles
from .launch import Launch, kept, looks, run

MOST_PLANS = 256

_TINY = tl.constexpr(1.1754943508222875e-38)
"""float32's smallest normal number."""


class Planned(NamedTuple):
    """The launches of an entry.

    parts: sums of each matrix, which `sum_parts` writes if they are not given.
    """

    parts: int
    sum_parts: Launch | None
    normalize: Launch

    def bind(self, x: Any, out: Any, sums: Any, first: int, eps: float, safety_factor: float) -> Iterator[Launch]:
        """The launches on these pointers, with the sums from `first` on."""
        if self.sum_parts is not None:
            yield self.sum_parts.bind({"x": x, "partials": sums})
        options = {"first": first, "eps": float(eps), "safety_factor": float(safety_factor)}
        yield self.normalize.bind({"x": x, "out": out, "sums": sums, **options})


_plans: dict[tuple[Hashable, ...], Planned] = {}


def normalize(xs: list[Tensor], sumsq: Tensor | None, outs: list[Tensor], *, eps: float, safety_factor: float) -> None:
    """See `muon_kernels.ops.normalize`."""
    run(plan(xs, sumsq, outs, eps=eps, safety_factor=safety_factor), outs[0].device)


def plan(
    xs: list[Tensor], sumsq: Tensor | None, outs: list[Tensor], *, eps: float, safety_factor: float
) -> Iterator[Launch]:
    """The launches of one call."""
    given = [] if sumsq is None else [sumsq.contiguous()]
    first = 0
    for x, out in zip(xs, outs, strict=True):
        if x.numel():
            entry = planned(x, out, *given)
            sums = given[0] if given else torch.empty((len(x), entry.parts), dtype=torch.float64, device=x.device)
            yield from entry.bind(x, out, sums, first if given else 0, eps, safety_factor)
        first += x.shape[0]


def planned(x: Tensor, out: Tensor, *given: Tensor) -> Planned:
    """The launches of an entry that looks like this, with its sums if they are given."""
    return kept(_plans, MOST_PLANS, looks(x, out, *given), partial(_plan, x, out, *given))


def _plan(x: Tensor, out: Tensor, given: Tensor | None = None) -> Planned:
    count = sum_squares.parts(x) if given is None else 1
    sums = torch.empty((x.shape[0], count), dtype=torch.float64, device=x.device) if given is None else given
    matrix = tiles(x.shape[1:], x.stride()[1:], out.stride()[1:])
    arguments = {
        "x": x,
        "out": out,
        "sums": sums,
        "first": 0,
        "parts": count,
        "rows": matrix.rows,
        "cols": matrix.cols,
        "x_strides": (x.stride(0), *matrix.strides[0]),
        "out_strides": (out.stride(0), *matrix.strides[1]),
        "eps": 0.0,
        "safety_factor": 1.0,
        "PARTS": sum_squares.MOST_PARTS if given is None else 1,
        "TILE_ROWS": matrix.tile[0],
        "TILE_COLS": matrix.tile[1],
    }
    launch = Launch(normalize_kernel, (x.shape[0] * matrix.count,), arguments, WARPS, free=("first", "parts"))
    return Planned(
        count,
        sum_squares.sum_parts(x, sums).plan("x", "partials") if given is None else None,
        launch.plan("x", "out", "sums"),
    )


@triton.jit(do_not_specialize=["first", "parts"])
def normalize_kernel(
    x,
    out,
    sums,
    first,
    parts,
    rows,
    cols,
    x_strides,
    out_strides,
    eps,
    safety_factor,
    PARTS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLS: tl.constexpr,
):
    """One program computes one tile; a matrix's tiles are neighbours. Its squared norm is the sum of
    sums[first + matrix, :parts], parts <= PARTS."""
    tiles = tl.cdiv(rows, TILE_ROWS) * tl.cdiv(cols, TILE_COLS)
    tile = tl.program_id(0) % tiles
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    # Asked for first: both loads are on their way together.
    row, col, mask = tile_indices(tile, rows, cols, TILE_ROWS, TILE_COLS)
    value = tl.load(x + batch * x_strides[0] + row * x_strides[1] + col * x_strides[2], mask, 0.0).to(tl.float32)

    part = tl.arange(0, PARTS)
    own = tl.load(sums + (first + batch) * parts + part, part < parts, 0.0)
    norm = tl.sqrt(tl.sum(own, axis=0)) * safety_factor
    scale = 1.0 / tl.maximum(norm, eps)
    scale = tl.where(norm < _TINY, 0.0, scale)
    # The comparison is false for NaN and for infinity.
    scale = tl.where(norm < float("inf"), scale, float("nan")).to(tl.float32)
    value = (value * scale).to(out.dtype.element_ty)
    tl.store(out + batch * out_strides[0] + row * out_strides[1] + col * out_strides[2], value, mask)
