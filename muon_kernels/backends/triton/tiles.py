"""The tiles of a launch: in which order they are taken, by which program, and one tile's sum over k.

Tiles are numbered down columns of GROUP rows, so that programs that run at the same time share operands in the L2
cache. Of symmetric results the lower triangle is computed alone, in bands of GROUP rows of tiles, down the columns of
a band; tiles may be wider than high (BLOCK_N a multiple of BLOCK_M) and then reach over the diagonal.

With pointers a program finds its entry by comparing its index with the entries' last tiles. With descriptors programs
go from entry to entry. A tile's sum over k has one order, whatever the tile's size and however it is loaded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .operands import describe, load, pick, pick_matrix, pick_sizes, pointers


@triton.jit
def each_tile(
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
    SYMMETRIC: tl.constexpr = False,
):
    """Hands every tile of a b that is this program's to `STORE`, a function like gemm_add's, with its `arguments`."""
    if PROGRAMS:
        # With one program a multiprocessor, a tile's first loads have to run while the tile before is stored. That
        # takes a `STORE` that does not branch, which a symmetric one does at the diagonal.
        FLATTEN: tl.constexpr = PROGRAMS == 1 and not SYMMETRIC
        begin = 0
        for entry in range(ENTRIES):
            m, n, k = pick_sizes(sizes, entry, ENTRIES, SYMMETRIC)
            tiles = _count(m, n, SYMMETRIC, BLOCK_M, BLOCK_N)
            count, first = _share_of_entry(sizes, entry, begin, ENTRIES)
            if first < count:
                a_blocks = describe(a, entry, count // tiles, m, k, ENTRIES, TRANS_A, BLOCK_M, BLOCK_K)
                b_blocks = describe(b, entry, count // tiles, k, n, ENTRIES, TRANS_B, BLOCK_K, BLOCK_N)
                for tile in tl.range(first, count, tl.num_programs(0), flatten=FLATTEN):
                    batch = tile // tiles
                    row, col = _place(tile % tiles, m, n, SYMMETRIC, BLOCK_M, BLOCK_N, GROUP)
                    total = _described_product(
                        a_blocks, b_blocks, batch, row, col, k, BLOCK_M, BLOCK_N, BLOCK_K, TRANS_A, TRANS_B
                    )
                    STORE(total, entry, batch, row, col, m, n, arguments, ENTRIES, BLOCK_M, BLOCK_N)
            begin += count
    else:
        entry, tile = find_entry(sizes, ENTRIES)
        m, n, k = pick_sizes(sizes, entry, ENTRIES, SYMMETRIC)
        tiles = _count(m, n, SYMMETRIC, BLOCK_M, BLOCK_N)
        batch = tile // tiles
        row, col = _place(tile % tiles, m, n, SYMMETRIC, BLOCK_M, BLOCK_N, GROUP)
        rows = row + tl.arange(0, BLOCK_M)
        cols = col + tl.arange(0, BLOCK_N)
        a, a_row, a_col = pick_matrix(a, entry, batch, ENTRIES)
        b, b_row, b_col = pick_matrix(b, entry, batch, ENTRIES)
        total = _product(a, a_row, a_col, b, b_row, b_col, rows, cols, m, n, k, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K)
        STORE(total, entry, batch, row, col, m, n, arguments, ENTRIES, BLOCK_M, BLOCK_N)


@triton.jit
def find_entry(sizes, ENTRIES: tl.constexpr):
    """This program's entry, and its tile counted from that entry's first tile."""
    program = tl.program_id(0)
    entry = 0
    first = 0
    for i in tl.static_range(0, ENTRIES - 1):
        end = (sizes[i][3] >> 1).to(tl.int32)
        entry = tl.where(program >= end, i + 1, entry)
        first = tl.where(program >= end, end, first)
    return entry, program - first


@triton.jit
def _share_of_entry(sizes, entry, begin, ENTRIES: tl.constexpr):
    """Tiles of an entry, whose first has number `begin` in the launch, and the first of them that is this program's.

    Programs take tiles in turn, on through all entries, so that no two entries' rests fall to the same programs.
    """
    end = (pick(sizes, 3, entry, ENTRIES) >> 1).to(tl.int32)
    programs = tl.num_programs(0)
    return end - begin, (tl.program_id(0) - begin % programs + programs) % programs


@triton.jit
def _count(m, n, SYMMETRIC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Tiles of one matrix; if symmetric, those of the lower triangle of blocks of BLOCK_N rows and columns."""
    if SYMMETRIC:
        blocks = tl.cdiv(m, BLOCK_N)
        return blocks * (blocks + 1) // 2 * (BLOCK_N // BLOCK_M)
    else:
        return tl.cdiv(m, BLOCK_M) * tl.cdiv(n, BLOCK_N)


@triton.jit
def _place(tile, m, n, SYMMETRIC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """First row and column of a tile."""
    if SYMMETRIC:
        return _place_in_triangle(tile, m, BLOCK_M, BLOCK_N, GROUP)
    else:
        return _place_in_rectangle(tile, m, n, BLOCK_M, BLOCK_N, GROUP)


@triton.jit
def _place_in_rectangle(tile, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    tile_rows = tl.cdiv(m, BLOCK_M)
    tile_cols = tl.cdiv(n, BLOCK_N)
    first = tile // (GROUP * tile_cols) * GROUP
    height = tl.minimum(tile_rows - first, GROUP)
    within = tile % (GROUP * tile_cols)
    return (first + within % height) * BLOCK_M, within // height * BLOCK_N


@triton.jit
def _place_in_triangle(tile, m, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
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
def _described_product(
    a,
    b,
    batch,
    row,
    col,
    k,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TRANS_A: tl.constexpr,
    TRANS_B: tl.constexpr,
):
    """`_product` of descriptors."""
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        left = load(a, batch, row, start, TRANS_A, BLOCK_M, BLOCK_K)
        right = load(b, batch, start, col, TRANS_B, BLOCK_K, BLOCK_N)
        total = tl.dot(left, right, total, input_precision="ieee")
    return total


@triton.jit
def _product(
    a,
    a_row,
    a_col,
    b,
    b_row,
    b_col,
    rows,
    cols,
    m,
    n,
    k,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """Sum over k of a[rows, k] b[k, cols] in float32; what lies outside the matrices counts as zero."""
    ks = tl.arange(0, BLOCK_K)
    a_tile = pointers(a, a_row, a_col, rows, ks)
    b_tile = pointers(b, b_row, b_col, ks, cols)
    a_step = tl.cast(a_col, tl.int64) * BLOCK_K
    b_step = tl.cast(b_row, tl.int64) * BLOCK_K
    row_mask = (rows < m)[:, None]
    col_mask = (cols < n)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        if EVEN_K:
            left = tl.load(a_tile, row_mask, 0.0)
            right = tl.load(b_tile, col_mask, 0.0)
        else:
            left = tl.load(a_tile, row_mask & (ks < k - start)[None, :], 0.0)
            right = tl.load(b_tile, col_mask & (ks < k - start)[:, None], 0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
        a_tile += a_step
        b_tile += b_step
    return total
