"""gemm_add: out <- alpha a b + beta c.

One program computes one tile; tiles are numbered down columns of GROUP rows, so that programs that run at the same
time share operands in the L2 cache.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..configs import GemmConfig
from . import gemm
from .gemm import find_entry, pick_matrix, pick_sizes, pointers, product_tile
from .launch import Launch, run


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
    return gemm.plan("gemm_add", gemm_add_kernel, _tile_count, a, b, c, outs, factors)


def _tile_count(config: GemmConfig, m: int, n: int) -> int:
    return triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n)


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
):
    entry, tile = find_entry(sizes, ENTRIES)
    m, n, k = pick_sizes(sizes, entry, ENTRIES)
    tile_rows = tl.cdiv(m, BLOCK_M)
    tile_cols = tl.cdiv(n, BLOCK_N)
    batch = tile // (tile_rows * tile_cols)
    tile = tile % (tile_rows * tile_cols)

    first_row = tile // (GROUP * tile_cols) * GROUP
    group = tl.minimum(tile_rows - first_row, GROUP)
    within = tile % (GROUP * tile_cols)
    rows = (first_row + within % group) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = within // group * BLOCK_N + tl.arange(0, BLOCK_N)

    a, a_row, a_col = pick_matrix(a, entry, batch, ENTRIES)
    b, b_row, b_col = pick_matrix(b, entry, batch, ENTRIES)
    value = alpha * product_tile(
        a, a_row, a_col, b, b_row, b_col, rows, cols, m, n, k, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K
    )
    mask = (rows < m)[:, None] & (cols < n)[None, :]
    if c is not None:
        c, c_row, c_col = pick_matrix(c, entry, batch, ENTRIES)
        value += beta * tl.load(pointers(c, c_row, c_col, rows, cols), mask).to(tl.float32)
    out, out_row, out_col = pick_matrix(out, entry, batch, ENTRIES)
    tl.store(pointers(out, out_row, out_col, rows, cols), value.to(out.dtype.element_ty), mask)
