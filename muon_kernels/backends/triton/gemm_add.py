"""gemm_add: out <- alpha a b + beta c.

Tiles are numbered down columns of GROUP rows, so that programs that run at the same time share operands in the L2
cache.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import gemm
from .gemm import (
    describe,
    described_product_tile,
    find_entry,
    pick_matrix,
    pick_sizes,
    pointers,
    product_tile,
    share_of_entry,
)
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
    tiles_of_products(
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
def tiles_of_products(
    a,
    b,
    sizes,
    arguments,
    STORE: tl.constexpr,
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
    """Hands every tile that is this program's to `STORE`, a function like `_store`, with the `arguments` of its own.

    It must not branch, or a tile's loads wait for the tile before.
    """
    if PROGRAMS:
        # With one program a multiprocessor, a tile's first loads have to run while the tile before is stored.
        FLATTEN: tl.constexpr = PROGRAMS == 1
        begin = 0
        for entry in range(ENTRIES):
            m, n, k = pick_sizes(sizes, entry, ENTRIES)
            tiles = tl.cdiv(m, BLOCK_M) * tl.cdiv(n, BLOCK_N)
            count, first = share_of_entry(sizes, entry, begin, ENTRIES)
            if first < count:
                a_blocks = describe(a, entry, count // tiles, m, k, ENTRIES, TRANS_A, BLOCK_M, BLOCK_K)
                b_blocks = describe(b, entry, count // tiles, k, n, ENTRIES, TRANS_B, BLOCK_K, BLOCK_N)
                for tile in tl.range(first, count, tl.num_programs(0), flatten=FLATTEN):
                    batch = tile // tiles
                    row, col = _place(tile % tiles, m, n, BLOCK_M, BLOCK_N, GROUP)
                    total = described_product_tile(
                        a_blocks, b_blocks, batch, row, col, k, BLOCK_M, BLOCK_N, BLOCK_K, TRANS_A, TRANS_B
                    )
                    STORE(total, entry, batch, row, col, m, n, arguments, ENTRIES, BLOCK_M, BLOCK_N)
            begin += count
    else:
        entry, tile = find_entry(sizes, ENTRIES)
        m, n, k = pick_sizes(sizes, entry, ENTRIES)
        tiles = tl.cdiv(m, BLOCK_M) * tl.cdiv(n, BLOCK_N)
        batch = tile // tiles
        row, col = _place(tile % tiles, m, n, BLOCK_M, BLOCK_N, GROUP)
        rows = row + tl.arange(0, BLOCK_M)
        cols = col + tl.arange(0, BLOCK_N)
        a, a_row, a_col = pick_matrix(a, entry, batch, ENTRIES)
        b, b_row, b_col = pick_matrix(b, entry, batch, ENTRIES)
        total = product_tile(a, a_row, a_col, b, b_row, b_col, rows, cols, m, n, k, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K)
        STORE(total, entry, batch, row, col, m, n, arguments, ENTRIES, BLOCK_M, BLOCK_N)


@triton.jit
def _place(tile, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """First row and column of a tile."""
    tile_rows = tl.cdiv(m, BLOCK_M)
    tile_cols = tl.cdiv(n, BLOCK_N)
    first = tile // (GROUP * tile_cols) * GROUP
    height = tl.minimum(tile_rows - first, GROUP)
    within = tile % (GROUP * tile_cols)
    return (first + within % height) * BLOCK_M, within // height * BLOCK_N


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
