"""What the elementwise ops share: runs of tensors that look alike, and tiles of a matrix.

A launch serves up to MAX_TENSORS consecutive tensors of equal shape and strides. Their addresses travel by value, as
tuples, so a captured CUDA graph holds them, nothing is uploaded and nothing has to outlive the call; a program picks
its tensor by comparing an index. Offsets are 64 bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import groupby
from operator import or_

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..strides import as_matrices
from .launch import ALIGNMENT

MAX_TENSORS = 64

WARPS = 8
TILE = 8192
"""Elements of a tile: 32 a thread, so that a program's start is small beside its loads."""

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True)
class Tiles:
    """Tensors seen as matrices of one shape and cut into tiles.

    strides: for each tensor, row and column stride.
    tile: extents of a tile: whole rows if they are short, else a part of one.
    count: tiles of one tensor.
    """

    rows: int
    cols: int
    strides: tuple[tuple[int, int], ...]
    tile: tuple[int, int]
    count: int


@lru_cache(maxsize=4096)
def tiles(shape: torch.Size, *strides: tuple[int, ...]) -> Tiles:
    """Tensors of one shape, by their strides; raises ValueError if they are no matrices, whatever dimensions merge."""
    matrices = as_matrices(shape, *strides)
    if matrices is None:
        raise ValueError(f"must merge into at most two dimensions, got strides {list(strides)}")
    cols = min(TILE, triton.next_power_of_2(max(matrices.cols, 1)))
    rows = TILE // cols
    count = triton.cdiv(matrices.rows, rows) * triton.cdiv(matrices.cols, cols)
    return Tiles(matrices.rows, matrices.cols, matrices.strides, (rows, cols), count)


@dataclass(frozen=True)
class Run:
    """Consecutive tensors of some lists that one launch serves.

    addresses: for each list, the tensors' addresses in the form and number that a kernel takes.
    """

    first: int
    count: int
    tiles: Tiles
    aligned: bool
    addresses: tuple[tuple[int, ...], ...]


def runs(names: str, lists: Sequence[Sequence[Tensor]], labels: Sequence[object] | None = None) -> Iterator[Run]:
    """Cuts lists of tensors, equal in shape at every index, into runs; empty tensors make runs of no tiles.

    Args:
        names: what the lists are called in an error message.
        labels: tensors whose labels differ never share a run.

    Raises:
        ValueError: tensors that are no matrices, whatever dimensions are merged.
    """
    shapes = [t.shape for t in lists[0]]
    strides = [[t.stride() for t in tensors] for tensors in lists]
    addresses = [[t.data_ptr() for t in tensors] for tensors in lists]
    bits = reduce(lambda one, other: list(map(or_, one, other)), addresses)
    aligned = [each % ALIGNMENT == 0 for each in bits]
    looks = zip(aligned, labels or shapes, shapes, *strides, strict=True)
    end = 0
    for (wide, _, *layout), alike in groupby(looks):
        start, end = end, end + sum(1 for _ in alike)
        try:
            cut = tiles(*layout)
        except ValueError as error:
            raise ValueError(f"{names} at index {start} {error}") from None
        for first in range(start, end, MAX_TENSORS):
            last = min(end, first + MAX_TENSORS)
            yield Run(first, last - first, cut, wide, tuple([table(column[first:last]) for column in addresses]))


def table(addresses: list[int]) -> tuple[int, ...]:
    """Addresses in few lengths, so that few kernels are compiled, and each by `unspecialized`."""
    length = next(size for size in (1, 8, MAX_TENSORS) if size >= len(addresses))
    odd = [2 * address + 1 for address in addresses]
    return tuple(odd + odd[-1:] * (length - len(odd)))  # what only fills a place is never used


@triton.jit
def pick_pointer(addresses, entry, COUNT: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The address of tensor `entry`, which only the running program knows."""
    address = addresses[0]
    for i in tl.static_range(1, COUNT):
        address = tl.where(entry == i, addresses[i], address)
    pointer = (address >> 1).to(tl.pointer_type(TYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def tile_indices(tile, rows, cols, TILE_ROWS: tl.constexpr, TILE_COLS: tl.constexpr):
    """Row and column indices of a tile, as a column and a row of int64, and the mask of what lies in the matrix."""
    across = tl.cdiv(cols, TILE_COLS)
    row = (tile // across).to(tl.int64) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    col = (tile % across).to(tl.int64) * TILE_COLS + tl.arange(0, TILE_COLS)
    return row[:, None], col[None, :], (row < rows)[:, None] & (col < cols)[None, :]
