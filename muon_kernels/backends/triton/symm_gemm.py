"""symm_gemm: out <- alpha a b + beta c + delta I where the result is known to be symmetric.

Only tiles of the lower triangle are computed. A tile is stored in square pieces, twice: the second time transposed.
A piece on the diagonal is stored once, and there too every element pair has one source: the result is bitwise
symmetric. Tiles may be wider than high (BLOCK_N a multiple of BLOCK_M); pieces above the diagonal are left out then.

With norms the factors are multiplied by powers of each matrix's gain, which every tile computes anew.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ...program import NORM_ROWS
from . import gemm
from .launch import Launch, run
from .operands import pick_matrix, pointers
from .tiles import each_tile

_NORM_ROWS = tl.constexpr(NORM_ROWS)

_NORMS = tl.constexpr(128)
"""Read at a time: no more than the threads of a program. A thread that had two could be given neighbours or not, by
what Triton knows of addresses, and sums would depend on what else is in the launch."""


def symm_gemm(
    a: list[Tensor], b: list[Tensor], c: list[Tensor], outs: list[Tensor], *, alpha: float, beta: float, delta: float
) -> None:
    """See `muon_kernels.ops.symm_gemm`."""
    run(gemm.bound("symm_gemm", symm_gemm_kernel, a, b, c, outs, _factors(alpha, beta, delta)), outs[0].device)


def plan(
    a: list[Tensor],
    b: list[Tensor],
    c: list[Tensor],
    outs: list[Tensor],
    *,
    alpha: float,
    beta: float,
    delta: float,
    norms: list[Tensor] | None = None,
    powers: tuple[int, int, int] = (0, 0, 0),
) -> list[Launch]:
    """The launches of one call; for norms and powers see `muon_kernels.program.ProgramBuilder.symm_gemm`."""
    return gemm.plan("symm_gemm", symm_gemm_kernel, a, b, c, outs, _factors(alpha, beta, delta, norms, powers))


def _factors(
    alpha: float,
    beta: float,
    delta: float,
    norms: list[Tensor] | None = None,
    powers: tuple[int, int, int] = (0, 0, 0),
) -> dict[str, Any]:
    return {"alpha": float(alpha), "beta": float(beta), "delta": float(delta), "norms": norms, "POWERS": powers}


@triton.jit
def symm_gemm_kernel(
    a,
    b,
    c,
    out,
    sizes,
    alpha,
    beta,
    delta,
    norms,
    POWERS: tl.constexpr,
    ENTRIES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN_K: tl.constexpr,
    PROGRAMS: tl.constexpr,
    TRANS_A: tl.constexpr,
    TRANS_B: tl.constexpr,
):
    each_tile(
        a,
        b,
        sizes,
        (c, out, alpha, beta, delta, norms, POWERS),
        _store,
        ENTRIES,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        GROUP,
        EVEN_K,
        PROGRAMS,
        TRANS_A,
        TRANS_B,
        SYMMETRIC=True,
    )


@triton.jit
def _store(
    total,
    entry,
    batch,
    row,
    col,
    m,
    n,
    arguments,
    ENTRIES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Stores a tile of a b at (row, col) and its mirror image, with the other terms added."""
    c, out, alpha, beta, delta, norms = arguments[:6]
    if norms is not None:
        POWERS: tl.constexpr = arguments[6]
        gain = _gain(norms, entry, batch, m, ENTRIES)
        alpha = _gained(alpha, gain, POWERS[0])
        beta = _gained(beta, gain, POWERS[1])
        delta = _gained(delta, gain, POWERS[2])
    _store_pieces(total, entry, batch, row, col, m, n, (c, out, alpha, beta, delta), ENTRIES, BLOCK_M, BLOCK_N)


@triton.jit
def _gain(norms, entry, batch, m, ENTRIES: tl.constexpr):
    """Of a matrix, from what `gram_norms` has written."""
    start, row, col = pick_matrix(norms, entry, batch, ENTRIES)
    parts = tl.cdiv(m, _NORM_ROWS)
    squares = tl.zeros((_NORMS,), tl.float32)
    traces = tl.zeros((_NORMS,), tl.float32)
    for first in range(0, parts, _NORMS):
        part = first + tl.arange(0, _NORMS)
        at = start + part.to(tl.int64) * col
        norm = tl.load(at, part < parts, 0.0).to(tl.float32)
        squares += norm * norm
        traces += tl.load(at + row, part < parts, 0.0).to(tl.float32)
    norm = tl.sqrt(tl.sum(squares, axis=0))
    return tl.sqrt(tl.where(norm == 0, 0.0, tl.sum(traces, axis=0) / norm))  # NaN is not 0


@triton.jit
def _gained(factor, gain, POWER: tl.constexpr):
    for _ in tl.static_range(POWER):
        factor *= gain
    return factor


@triton.jit
def _store_pieces(
    total,
    entry,
    batch,
    row,
    col,
    m,
    n,
    arguments,
    ENTRIES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    if BLOCK_N > BLOCK_M:
        HALF: tl.constexpr = BLOCK_N // 2
        left, right = tl.split(total.reshape(BLOCK_M, 2, HALF).permute(0, 2, 1))
        _store_pieces(left, entry, batch, row, col, m, n, arguments, ENTRIES, BLOCK_M, HALF)
        _store_pieces(right, entry, batch, row, col + HALF, m, n, arguments, ENTRIES, BLOCK_M, HALF)
    elif row >= col:
        c, out, alpha, beta, delta = arguments
        rows = row + tl.arange(0, BLOCK_M)
        cols = col + tl.arange(0, BLOCK_N)
        mask = (rows < m)[:, None] & (cols < n)[None, :]
        value = alpha * total
        if c is not None:
            c_start, c_row, c_col = pick_matrix(c, entry, batch, ENTRIES)
            value += beta * tl.load(pointers(c_start, c_row, c_col, rows, cols), mask).to(tl.float32)
        value += tl.where(rows[:, None] == cols[None, :], delta, 0.0)
        start, out_row, out_col = pick_matrix(out, entry, batch, ENTRIES)
        result = value.to(start.dtype.element_ty)
        lower = pointers(start, out_row, out_col, rows, cols)
        if row > col:
            tl.store(lower, result, mask)
            tl.store(pointers(start, out_row, out_col, cols, rows), tl.trans(result), tl.trans(mask))
        else:
            tl.store(lower, tl.where(rows[:, None] >= cols[None, :], result, tl.trans(result)), mask)
