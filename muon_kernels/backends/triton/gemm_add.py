"""gemm_add: out <- alpha a b + beta c."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import gemm
from .launch import Launch, run
from .operands import pick_matrix, pointers
from .tiles import each_tile

WIDEST = tl.constexpr(64)
"""Columns of a piece of a result in 32 bit: 256 bytes."""


def gemm_add(
    a: list[Tensor], b: list[Tensor], c: list[Tensor], outs: list[Tensor], *, alpha: float, beta: float
) -> None:
    """See `muon_kernels.ops.gemm_add`."""
    run(gemm.bound("gemm_add", gemm_add_kernel, a, b, c, outs, _factors(alpha, beta)), outs[0].device)


def plan(
    a: list[Tensor], b: list[Tensor], c: list[Tensor], outs: list[Tensor], *, alpha: float, beta: float
) -> list[Launch]:
    """The launches of one call."""
    return gemm.plan("gemm_add", gemm_add_kernel, a, b, c, outs, _factors(alpha, beta))


def _factors(alpha: float, beta: float) -> dict[str, float]:
    return {"alpha": float(alpha), "beta": float(beta)}


@triton.jit
def gemm_add_kernel(
    a,
    b,
    c,
    out,
    sizes,
    alpha,
    beta,
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
        (c, out, alpha, beta),
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
    """Stores a tile of a b at (row, col), with the other term added."""
    c, out, alpha, beta = arguments
    rows = row + tl.arange(0, BLOCK_M)
    cols = col + tl.arange(0, BLOCK_N)
    mask = (rows < m)[:, None] & (cols < n)[None, :]
    value = alpha * total
    if c is not None:
        c, c_row, c_col = pick_matrix(c, entry, batch, ENTRIES)
        value += beta * tl.load(pointers(c, c_row, c_col, rows, cols), mask).to(tl.float32)
    out, out_row, out_col = pick_matrix(out, entry, batch, ENTRIES)
    _store_pieces(value.to(out.dtype.element_ty), out, out_row, out_col, row, col, m, n, BLOCK_M, BLOCK_N)


@triton.jit
def _store_pieces(value, out, row_stride, col_stride, row, col, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """In 32 bit one after the other: a whole tile would need shared memory that the next one's operands have."""
    if value.dtype.primitive_bitwidth > 16 and BLOCK_N > WIDEST:
        HALF: tl.constexpr = BLOCK_N // 2
        left, right = tl.split(value.reshape(BLOCK_M, 2, HALF).permute(0, 2, 1))
        _store_pieces(left, out, row_stride, col_stride, row, col, m, n, BLOCK_M, HALF)
        _store_pieces(right, out, row_stride, col_stride, row, col + HALF, m, n, BLOCK_M, HALF)
    else:
        rows = row + tl.arange(0, BLOCK_M)
        cols = col + tl.arange(0, BLOCK_N)
        mask = (rows < m)[:, None] & (cols < n)[None, :]
        tl.store(pointers(out, row_stride, col_stride, rows, cols), value, mask)
