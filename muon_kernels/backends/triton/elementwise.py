"""What the elementwise ops share: runs of tensors that look alike, and tiles of a matrix.

A launch serves up to MAX_TENSORS consecutive tensors of equal shape and strides. Their addresses travel by value, as
tuples, so a captured CUDA graph holds them, nothing is uploaded and nothing has to outlive the call; a program picks
its tensor by comparing an index. Offsets are 64 bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..strides import as_matrices
from .launch import ALIGNMENT, unspecialized

MAX_TENSORS = 64

WARPS = 8
TILE = 8192
"""Elements of a tile: 32 a thread, so that a program's start is small beside its loads."""

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True)
class Run:
    """Consecutive tensors of some lists that one launch serves, all seen as one matrix layout.

    addresses: for each list, the tensors' addresses in the form and number that a kernel takes.
    strides: for each list, row and column stride.
    """

    first: int
    count: int
    rows: int
    cols: int
    addresses: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, int], ...]
    aligned: bool

    @property
    def tile(self) -> tuple[int, int]:
        """Extents of a tile: whole rows if they are short, else a part of one."""
        cols = min(TILE, triton.next_power_of_2(self.cols))
        return TILE // cols, cols

    @property
    def tiles(self) -> int:
        """Tiles of one tensor."""
        rows, cols = self.tile
        return triton.cdiv(self.rows, rows) * triton.cdiv(self.cols, cols)


def runs(names: str, lists: Sequence[Sequence[Tensor]], labels: Sequence[object] | None = None) -> Iterator[Run]:
    """Cuts lists of tensors, equal in shape at every index, into runs; empty tensors make runs of no tiles.

    Args:
        names: what the lists are called in an error message.
        labels: tensors whose labels differ never share a run.

    Raises:
        ValueError: tensors that are no matrices, whatever dimensions are merged.
    """
    first = 0
    alike: object = None
    addresses: list[list[int]] = []
    for i, tensors in enumerate(zip(*lists, strict=True)):
        here = [t.data_ptr() for t in tensors]
        aligned = all(address % ALIGNMENT == 0 for address in here)
        look = (aligned, tensors[0].shape, *(t.stride() for t in tensors), labels[i] if labels else None)
        if addresses and (look != alike or len(addresses) == MAX_TENSORS):
            yield _run(names, lists, first, addresses)
            first, addresses = i, []
        alike = look
        addresses.append(here)
    if addresses:
        yield _run(names, lists, first, addresses)


def _run(names: str, lists: Sequence[Sequence[Tensor]], first: int, addresses: list[list[int]]) -> Run:
    tensors = [tensors[first] for tensors in lists]
    matrix = as_matrices(tensors)
    if matrix is None:
        got = [t.stride() for t in tensors]
        raise ValueError(f"{names} at index {first} must merge into at most two dimensions, got strides {got}")
    rows, cols = matrix[:2]
    strides = matrix[2 + len(lists) :]
    count = len(addresses)
    # Few lengths, so that few kernels are compiled; an address that only fills a place is never used.
    length = next(size for size in (1, 8, MAX_TENSORS) if size >= count)
    padded = addresses + addresses[-1:] * (length - count)
    return Run(
        first=first,
        count=count,
        rows=rows,
        cols=cols,
        addresses=tuple(tuple(map(unspecialized, column)) for column in zip(*padded, strict=True)),
        strides=tuple(zip(strides[::2], strides[1::2], strict=True)),
        aligned=all(address % ALIGNMENT == 0 for address in addresses[0]),
    )


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
