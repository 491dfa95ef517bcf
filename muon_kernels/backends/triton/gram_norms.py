"""gram_norms: of every NORM_ROWS rows of Gram matrices, their Frobenius norm and their part of the trace."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from ...program import NORM_ROWS
from . import gemm
from .launch import Launch, unspecialized
from .operands import pick, pick_matrix, pointers
from .tiles import find_entry

WARPS = 8
COLS = 512
"""Of a tile: 64 elements a thread. Few large matrices have few programs, each of which keeps that much on its way."""


def plan(grams: list[Tensor], outs: list[Tensor]) -> list[Launch]:
    """The launches that write outs[i] [batch, 2, parts] for grams[i] [batch, rows, rows], which have no zero extents.

    Matrices share a launch if they lie alike in memory: that decides how wide loads are and which thread adds up what.
    """
    alike: dict[gemm.Layout, list[int]] = {}
    for i, gram in enumerate(grams):
        alike.setdefault(gemm.layout(gram), []).append(i)
    return [launch for members in alike.values() for launch in _launches(grams, outs, members)]


def _launches(grams: list[Tensor], outs: list[Tensor], members: list[int]) -> Iterator[Launch]:
    for first in range(0, len(members), gemm.MAX_ENTRIES):
        chosen = members[first : first + gemm.MAX_ENTRIES]
        sizes = []
        end = 0
        for i in chosen:
            batch, rows, cols = grams[i].shape
            end += batch * triton.cdiv(rows, NORM_ROWS)
            sizes.append((rows, cols, 0, unspecialized(end)))
        arguments = {
            "a": gemm.fields(grams, chosen),
            "out": gemm.fields(outs, chosen),
            "sizes": tuple(sizes),
            "ENTRIES": len(chosen),
            "ROWS": NORM_ROWS,
            "COLS": COLS,
        }
        yield Launch(gram_norms_kernel, (end,), arguments, WARPS)


@triton.jit
def gram_norms_kernel(a, out, sizes, ENTRIES: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """One program reads ROWS rows, from left to right; a matrix's programs are neighbours."""
    entry, program = find_entry(sizes, ENTRIES)
    m = pick(sizes, 0, entry, ENTRIES)
    n = pick(sizes, 1, entry, ENTRIES)
    parts = tl.cdiv(m, ROWS)
    batch = program // parts
    part = program % parts
    start, row_stride, col_stride = pick_matrix(a, entry, batch, ENTRIES)
    rows = part * ROWS + tl.arange(0, ROWS)
    diagonal = tl.load(start + rows.to(tl.int64) * (row_stride + col_stride), rows < m, 0.0).to(tl.float32)
    squares = tl.zeros((ROWS, COLS), tl.float32)
    for first in range(0, n, COLS):
        cols = first + tl.arange(0, COLS)
        mask = (rows < m)[:, None] & (cols < n)[None, :]
        value = tl.load(pointers(start, row_stride, col_stride, rows, cols), mask, 0.0).to(tl.float32)
        squares += value * value
    norms, norms_row, norms_col = pick_matrix(out, entry, batch, ENTRIES)
    norms += part.to(tl.int64) * norms_col
    tl.store(norms, tl.sqrt(tl.sum(tl.sum(squares, axis=1), axis=0)).to(norms.dtype.element_ty))
    tl.store(norms + norms_row, tl.sum(diagonal, axis=0).to(norms.dtype.element_ty))
