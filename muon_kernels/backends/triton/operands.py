"""The matrices of a problem list within a kernel: addresses and descriptors. Offsets are 64 bit."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pick(entries, FIELD: tl.constexpr, entry, ENTRIES: tl.constexpr):
    """entries[entry][FIELD], for an entry that only the running program knows."""
    value = entries[0][FIELD]
    for i in tl.static_range(1, ENTRIES):
        value = tl.where(entry == i, entries[i][FIELD], value)
    return value


@triton.jit
def pick_sizes(sizes, entry, ENTRIES: tl.constexpr, SYMMETRIC: tl.constexpr):
    """m, n, k of an entry."""
    N: tl.constexpr = 0 if SYMMETRIC else 1
    return pick(sizes, 0, entry, ENTRIES), pick(sizes, N, entry, ENTRIES), pick(sizes, 2, entry, ENTRIES)


@triton.jit
def pick_matrix(operand, entry, batch, ENTRIES: tl.constexpr):
    """Address, row stride and column stride of matrix `batch` of an entry."""
    start = pick(operand, 0, entry, ENTRIES)
    start += batch.to(tl.int64) * pick(operand, 1, entry, ENTRIES)
    return start, pick(operand, 2, entry, ENTRIES), pick(operand, 3, entry, ENTRIES)


@triton.jit
def pointers(start, row_stride, col_stride, rows, cols):
    return start + rows.to(tl.int64)[:, None] * row_stride + cols.to(tl.int64)[None, :] * col_stride


@triton.jit
def describe(
    operand,
    entry,
    batch,
    rows,
    cols,
    ENTRIES: tl.constexpr,
    TRANS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """The descriptor of an entry's matrices as they lie in memory: the transposed ones if TRANS."""
    start = pick(operand, 0, entry, ENTRIES)
    stride = pick(operand, 1, entry, ENTRIES).to(tl.int64)
    if TRANS:
        col = pick(operand, 3, entry, ENTRIES).to(tl.int64)
        return tl.make_tensor_descriptor(start, [batch, cols, rows], [stride, col, 1], [1, BLOCK_COLS, BLOCK_ROWS])
    else:
        row = pick(operand, 2, entry, ENTRIES).to(tl.int64)
        return tl.make_tensor_descriptor(start, [batch, rows, cols], [stride, row, 1], [1, BLOCK_ROWS, BLOCK_COLS])


@triton.jit
def load(descriptor, batch, row, col, TRANS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """A block of a matrix; zero outside."""
    if TRANS:
        return tl.trans(descriptor.load([batch, col, row]).reshape(BLOCK_COLS, BLOCK_ROWS))
    else:
        return descriptor.load([batch, row, col]).reshape(BLOCK_ROWS, BLOCK_COLS)
