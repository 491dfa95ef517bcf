"""gemm_add: out <- alpha a b + beta c."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import gemm
from .launch import Launch, run
from .operands import pick_matrix, pointers
from .tiles import each_tile


def gemm_add(
    a: list[Tensor], b: list[Tensor], c: list[Tensor], outs: list[Tensor], *, alpha: float, beta: float
) -> None:
    """See `muon_kernels.ops.gemm_add`."""
    run(plan(a, b, c, outs, alpha=alpha, beta=beta), outs[0].device)


def plan(
    a: list[Tensor], b: list[Tensor], c: list[Tensor], outs: list[Tensor], *, alpha: float, beta: float
) -> list[Launch]:
    """The launches of one call."""
    factors = {"alpha": float(alpha), "beta": float(beta)}
    return gemm.plan("gemm_add", gemm_add_kernel, a, b, c, outs, factors)


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
    tl.store(pointers(out, out_row, out_col, rows, cols), value.to(out.dtype.element_ty), mask)
