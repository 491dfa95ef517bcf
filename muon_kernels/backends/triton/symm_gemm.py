"""symm_gemm: out <- alpha a b + beta c + delta I where the result is known to be symmetric.

Only tiles of the lower triangle are computed. A tile is stored in square pieces, twice: the second time transposed.
A piece on the diagonal is stored once, and there too every element pair has one source: the result is bitwise
symmetric. Tiles may be wider than high (BLOCK_N a multiple of BLOCK_M); pieces above the diagonal are left out then.

The triangle is walked in bands of GROUP rows of tiles, down the columns of a band, so that programs that run at the
same time share operands in the L2 cache.
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


def symm_gemm(
    a: list[Tensor], b: list[Tensor], c: list[Tensor], outs: list[Tensor], *, alpha: float, beta: float, delta: float
) -> None:
    """See `muon_kernels.ops.symm_gemm`."""
    run(plan(a, b, c, outs, alpha=alpha, beta=beta, delta=delta), outs[0].device)


def plan(
    a: list[Tensor], b: list[Tensor], c: list[Tensor], outs: list[Tensor], *, alpha: float, beta: float, delta: float
) -> list[Launch]:
    """The launches of one call."""
    factors = {"alpha": float(alpha), "beta": float(beta), "delta": float(delta)}
    return gemm.plan("symm_gemm", symm_gemm_kernel, a, b, c, outs, factors)


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
    if PROGRAMS:
        begin = 0
        for entry in range(ENTRIES):
            m, _, k = pick_sizes(sizes, entry, ENTRIES)
            tiles = _tiles(m, BLOCK_M, BLOCK_N)
            count, first = share_of_entry(sizes, entry, begin, ENTRIES)
            if first < count:
                a_blocks = describe(a, entry, count // tiles, m, k, ENTRIES, TRANS_A, BLOCK_M, BLOCK_K)
                b_blocks = describe(b, entry, count // tiles, k, m, ENTRIES, TRANS_B, BLOCK_K, BLOCK_N)
                for tile in range(first, count, tl.num_programs(0)):
                    batch = tile // tiles
                    row, col = _place(tile % tiles, m, BLOCK_M, BLOCK_N, GROUP)
                    total = described_product_tile(
                        a_blocks, b_blocks, batch, row, col, k, BLOCK_M, BLOCK_N, BLOCK_K, TRANS_A, TRANS_B
                    )
                    _store(total, entry, batch, row, col, m, c, out, alpha, beta, delta, ENTRIES, BLOCK_M, BLOCK_N)
            begin += count
    else:
        entry, tile = find_entry(sizes, ENTRIES)
        m, _, k = pick_sizes(sizes, entry, ENTRIES)
        tiles = _tiles(m, BLOCK_M, BLOCK_N)
        batch = tile // tiles
        row, col = _place(tile % tiles, m, BLOCK_M, BLOCK_N, GROUP)
        rows = row + tl.arange(0, BLOCK_M)
        cols = col + tl.arange(0, BLOCK_N)
        a, a_row, a_col = pick_matrix(a, entry, batch, ENTRIES)
        b, b_row, b_col = pick_matrix(b, entry, batch, ENTRIES)
        total = product_tile(a, a_row, a_col, b, b_row, b_col, rows, cols, m, m, k, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K)
        _store(total, entry, batch, row, col, m, c, out, alpha, beta, delta, ENTRIES, BLOCK_M, BLOCK_N)


@triton.jit
def _tiles(m, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Tiles of one matrix: those of the lower triangle of blocks of BLOCK_N rows and columns."""
    blocks = tl.cdiv(m, BLOCK_N)
    return blocks * (blocks + 1) // 2 * (BLOCK_N // BLOCK_M)


@triton.jit
def _place(tile, m, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """First row and column of a tile."""
    RATIO: tl.constexpr = BLOCK_N // BLOCK_M
    BAND: tl.constexpr = (GROUP + RATIO - 1) // RATIO
    block = tile // RATIO
    # Blocks above those of row i: i (i + 1) / 2.
    first = _triangular_root(block) // BAND * BAND
    height = tl.minimum(BAND, tl.cdiv(m, BLOCK_N) - first)
    within = block - first * (first + 1) // 2
    # Left of the square on the diagonal column by column; in that square row by row.
    corner = tl.maximum(within - height * first, 0)
    corner_row = _triangular_root(corner)
    left = within < height * first
    row = first + tl.where(left, within % height, corner_row)
    col = tl.where(left, within // height, first + corner - corner_row * (corner_row + 1) // 2)
    return (row * RATIO + tile % RATIO) * BLOCK_M, col * BLOCK_N


@triton.jit
def _triangular_root(x):
    """The largest i with i (i + 1) / 2 <= x."""
    i = ((tl.sqrt(8.0 * x.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    i -= (i * (i + 1) // 2 > x).to(tl.int32)
    i += ((i + 1) * (i + 2) // 2 <= x).to(tl.int32)
    return i


@triton.jit
def _store(
    total,
    entry,
    batch,
    row,
    col,
    m,
    c,
    out,
    alpha,
    beta,
    delta,
    ENTRIES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Stores a tile of a b at (row, col) and its mirror image, with the other terms added."""
    if BLOCK_N > BLOCK_M:
        HALF: tl.constexpr = BLOCK_N // 2
        left, right = tl.split(total.reshape(BLOCK_M, 2, HALF).permute(0, 2, 1))
        _store(left, entry, batch, row, col, m, c, out, alpha, beta, delta, ENTRIES, BLOCK_M, HALF)
        _store(right, entry, batch, row, col + HALF, m, c, out, alpha, beta, delta, ENTRIES, BLOCK_M, HALF)
    elif row >= col:
        rows = row + tl.arange(0, BLOCK_M)
        cols = col + tl.arange(0, BLOCK_N)
        mask = (rows < m)[:, None] & (cols < m)[None, :]
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
