"""symm_gemm: out <- alpha a b + beta c + delta I where the result is known to be symmetric.

Only tiles of the lower triangle are computed. A tile is stored in square pieces, twice: the second time transposed.
A piece on the diagonal is stored once, and there too every element pair has one source: the result is bitwise
symmetric. Tiles may be wider than high (BLOCK_N a multiple of BLOCK_M); pieces above the diagonal are left out then.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import gemm
from .launch import Launch, run
from .operands import pick_matrix, pointers
from .tiles import each_tile


def symm_gemm(
    a: list[Tensor], b: list[Tensor], c: list[Tensor], outs: list[Tensor], *, alpha: float, beta: float, delta: float
) -> None:
    """See `muon_kernels.ops.symm_gemm`."""
    run(gemm.bound("symm_gemm", symm_gemm_kernel, a, b, c, outs, _factors(alpha, beta, delta)), outs[0].device)


def plan(
    a: list[Tensor], b: list[Tensor], c: list[Tensor], outs: list[Tensor], *, alpha: float, beta: float, delta: float
) -> list[Launch]:
    """The launches of one call."""
    return gemm.plan("symm_gemm", symm_gemm_kernel, a, b, c, outs, _factors(alpha, beta, delta))


def _factors(alpha: float, beta: float, delta: float) -> dict[str, float]:
    return {"alpha": float(alpha), "beta": float(beta), "delta": float(delta)}


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
        (c, out, alpha, beta, delta),
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
    if BLOCK_N > BLOCK_M:
        HALF: tl.constexpr = BLOCK_N // 2
        left, right = tl.split(total.reshape(BLOCK_M, 2, HALF).permute(0, 2, 1))
        _store(left, entry, batch, row, col, m, n, arguments, ENTRIES, BLOCK_M, HALF)
        _store(right, entry, batch, row, col + HALF, m, n, arguments, ENTRIES, BLOCK_M, HALF)
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
