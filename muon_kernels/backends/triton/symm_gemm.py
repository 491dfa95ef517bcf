"""symm_gemm: out <- alpha a b + beta c + delta I where the result is known to be symmetric.

One program computes one tile of the lower triangle and stores it twice, the second time transposed. A tile that the
diagonal crosses is computed once as well, and there too every element pair has one source: the result is bitwise
symmetric. Tiles may be wider than high (BLOCK_N a multiple of BLOCK_M).

Tiles are numbered in bands of GROUP rows of tiles (a multiple of BLOCK_N / BLOCK_M), down the columns of a band, so
that programs that run at the same time share operands in the L2 cache. A band is as long as its last row needs;
programs whose tile lies above the diagonal leave at once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..configs import GemmConfig
from . import gemm
from .gemm import find_entry, pick_matrix, pick_sizes, pointers, product_tile
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
    return gemm.plan("symm_gemm", symm_gemm_kernel, _tile_count, a, b, c, outs, factors)


def _tile_count(config: GemmConfig, m: int, n: int) -> int:
    bands = triton.cdiv(m, config.block_m * config.group)
    return bands * (bands + 1) // 2 * _square(config.block_m, config.block_n, config.group)


def _square(block_m: int, block_n: int, group: int) -> int:
    """Tiles of GROUP rows of tiles that are as long as they are high together."""
    return group * (group * block_m // block_n)


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
):
    SQUARE: tl.constexpr = GROUP * (GROUP * BLOCK_M // BLOCK_N)
    entry, tile = find_entry(sizes, ENTRIES)
    m, _, k = pick_sizes(sizes, entry, ENTRIES)
    bands = tl.cdiv(m, GROUP * BLOCK_M)
    batch = tile // (bands * (bands + 1) // 2 * SQUARE)
    tile = tile % (bands * (bands + 1) // 2 * SQUARE)

    band = _triangular_root(tile // SQUARE)
    within = tile - band * (band + 1) // 2 * SQUARE
    first_row = (band * GROUP + within % GROUP) * BLOCK_M
    first_col = within // GROUP * BLOCK_N
    if (first_row >= m) | (first_col >= first_row + BLOCK_M):
        return
    rows = first_row + tl.arange(0, BLOCK_M)
    cols = first_col + tl.arange(0, BLOCK_N)

    a, a_row, a_col = pick_matrix(a, entry, batch, ENTRIES)
    b, b_row, b_col = pick_matrix(b, entry, batch, ENTRIES)
    value = alpha * product_tile(
        a, a_row, a_col, b, b_row, b_col, rows, cols, m, m, k, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K
    )
    mask = (rows < m)[:, None] & (cols < m)[None, :]
    if c is not None:
        c, c_row, c_col = pick_matrix(c, entry, batch, ENTRIES)
        value += beta * tl.load(pointers(c, c_row, c_col, rows, cols), mask).to(tl.float32)
    value += tl.where(rows[:, None] == cols[None, :], delta, 0.0)

    out, out_row, out_col = pick_matrix(out, entry, batch, ENTRIES)
    lower = pointers(out, out_row, out_col, rows, cols)
    upper = pointers(out, out_row, out_col, cols, rows)
    value = value.to(out.dtype.element_ty)
    if first_row >= first_col + BLOCK_N:
        tl.store(lower, value, mask)
        tl.store(upper, tl.trans(value), tl.trans(mask))
    elif BLOCK_M == BLOCK_N:
        tl.store(lower, tl.where(rows[:, None] >= cols[None, :], value, tl.trans(value)), mask)
    else:
        tl.store(lower, value, mask & (rows[:, None] >= cols[None, :]))
        tl.store(upper, tl.trans(value), tl.trans(mask & (rows[:, None] > cols[None, :])))


@triton.jit
def _triangular_root(x):
    """The largest i with i (i + 1) / 2 <= x."""
    i = ((tl.sqrt(8.0 * x.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    i -= (i * (i + 1) // 2 > x).to(tl.int32)
    i += ((i + 1) * (i + 2) // 2 <= x).to(tl.int32)
    return i
