"""Where the elements of a parameter lie: rectangles of logical matrices on the ranks of a mesh. No tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

Run = tuple[int, int]
"""A half-open interval of indices."""


class Placement(NamedTuple):
    """What one mesh dimension does to a parameter.

    dim: the dimension that it cuts into chunks (as torch.chunk does); None: every index holds the same.
    split_factor: the dimension is first cut into so many chunks, each of which is then cut. DTensor's _StridedShard: a
        dimension that a mesh dimension further right had cut before.
    """

    dim: int | None = None
    split_factor: int = 1


@dataclass(frozen=True)
class Mesh:
    """The ranks of a group as a grid: its shape, and the coordinate of rank 0, 1, ..."""

    shape: tuple[int, ...]
    coordinates: tuple[tuple[int, ...], ...]

    @classmethod
    def grid(cls, *shape: int) -> Mesh:
        """Ranks in row-major order, as torch.distributed.device_mesh.init_device_mesh numbers them."""
        return cls(shape, tuple(product(*map(range, shape))))

    @property
    def size(self) -> int:
        return len(self.coordinates)


@dataclass(frozen=True)
class Parameter:
    """A parameter as [*leading, rows, cols], where it lies, and where its matrices are cut.

    state: placements of the momentum; the gradient is read there.
    param: placements of the parameter itself; updates go there.
    blocks: heights and widths of the matrices that rows and cols are cut into.
    """

    name: str
    shape: tuple[int, ...]
    state: tuple[Placement, ...]
    param: tuple[Placement, ...]
    blocks: tuple[tuple[int, ...], tuple[int, ...]]


class Matrix(NamedTuple):
    """A logical matrix: an index into the leading dimensions and a rectangle of the last two."""

    lead: tuple[int, ...]
    row: int
    col: int
    rows: int
    cols: int


class Piece(NamedTuple):
    """What a rank holds of a matrix: `rows` x `cols` elements at (row, col) of its local tensor's index `lead`, which
    are those at (at_row, at_col) of the matrix."""

    lead: tuple[int, ...]
    row: int
    col: int
    at_row: int
    at_col: int
    rows: int
    cols: int


def matrices(parameter: Parameter) -> Iterator[Matrix]:
    """The logical matrices of a parameter, empty ones left out."""
    heights, widths = parameter.blocks
    for lead in product(*map(range, parameter.shape[:-2])):
        row = 0
        for rows in heights:
            col = 0
            for cols in widths:
                if rows and cols:
                    yield Matrix(lead, row, col, rows, cols)
                col += cols
            row += rows


@lru_cache(maxsize=2**16)
def held(
    extent: int, dim: int, placements: tuple[Placement, ...], mesh_shape: tuple[int, ...], coordinate: tuple[int, ...]
) -> tuple[Run, ...]:
    """The indices of a dimension that the rank at `coordinate` holds, as runs in the order of its local tensor."""
    runs: tuple[Run, ...] = ((0, extent),)
    for placement, parts, index in zip(placements, mesh_shape, coordinate, strict=True):
        if placement.dim == dim:
            whole = _length(runs)
            chunks = [_chunk(whole, placement.split_factor, i) for i in range(placement.split_factor)]
            cuts = [(a + start, a + stop) for a, b in chunks for start, stop in [_chunk(b - a, parts, index)]]
            runs = tuple(run for start, stop in cuts for run in _select(runs, start, stop))
    return _merged(runs)


def pieces(
    parameter: Parameter, matrix: Matrix, placements: tuple[Placement, ...], mesh: Mesh, rank: int
) -> list[Piece]:
    """What `rank` holds of `matrix`, in an order that depends on nothing else."""
    *leading, rows, cols = (
        held(extent, dim, placements, mesh.shape, mesh.coordinates[rank]) for dim, extent in enumerate(parameter.shape)
    )
    local = [list(_overlaps(runs, i, i + 1)) for runs, i in zip(leading, matrix.lead, strict=True)]
    if not all(local):
        return []
    lead = tuple(start for ((start, _, _),) in local)
    return [
        Piece(lead, row, col, at_row, at_col, height, width)
        for row, at_row, height in _overlaps(rows, matrix.row, matrix.row + matrix.rows)
        for col, at_col, width in _overlaps(cols, matrix.col, matrix.col + matrix.cols)
    ]


def local_shape(parameter: Parameter, placements: tuple[Placement, ...], mesh: Mesh, rank: int) -> tuple[int, ...]:
    """The shape of a rank's local tensor."""
    return tuple(
        _length(held(extent, dim, placements, mesh.shape, mesh.coordinates[rank]))
        for dim, extent in enumerate(parameter.shape)
    )


def elements(parameter: Parameter, matrix: Matrix, placements: tuple[Placement, ...], mesh: Mesh) -> np.ndarray:
    """How many elements of `matrix` every rank holds: int64 [ranks]."""
    return _elements(parameter.shape, matrix, placements, mesh)


@lru_cache(maxsize=2**6)
def replica_sets(mesh: Mesh, placements: tuple[Placement, ...]) -> dict[int, list[int]]:
    """The ranks that hold the same elements, by the one whose coordinates come first."""
    sets: dict[tuple[int, ...], list[int]] = {}
    for rank in sorted(range(mesh.size), key=lambda r: mesh.coordinates[r]):
        pairs = zip(mesh.coordinates[rank], placements, strict=True)
        sets.setdefault(tuple(c for c, placement in pairs if placement.dim is not None), []).append(rank)
    return {ranks[0]: ranks for ranks in sets.values()}


def beside(mesh: Mesh, placements: tuple[Placement, ...], rank: int) -> np.ndarray:
    """Which ranks are in the same replica as `rank`, with which they make up the whole: bool [ranks]."""
    copied = [d for d, placement in enumerate(placements) if placement.dim is None]
    grid = np.array(mesh.coordinates, dtype=np.int64).reshape(mesh.size, len(mesh.shape))[:, copied]
    return (grid == np.array(mesh.coordinates[rank], dtype=np.int64)[copied]).all(axis=1)


@lru_cache(maxsize=2**12)
def _elements(shape: tuple[int, ...], matrix: Matrix, placements: tuple[Placement, ...], mesh: Mesh) -> np.ndarray:
    spans = [(i, i + 1) for i in matrix.lead]
    spans += [(matrix.row, matrix.row + matrix.rows), (matrix.col, matrix.col + matrix.cols)]
    counts = np.ones(mesh.size, dtype=np.int64)
    grid = np.array(mesh.coordinates, dtype=np.int64).reshape(mesh.size, len(mesh.shape))
    for dim, (extent, span) in enumerate(zip(shape, spans, strict=True)):
        # A table over the mesh dimensions that cut this dimension; the others do not matter.
        cutting = tuple(d for d, placement in enumerate(placements) if placement.dim == dim)
        sides = tuple(mesh.shape[d] for d in cutting)
        chosen = tuple(placements[d] for d in cutting)
        table = np.array(
            [sum(n for _, _, n in _overlaps(held(extent, dim, chosen, sides, at), *span)) for at in np.ndindex(*sides)]
        ).reshape(sides)
        counts *= table[tuple(grid[:, d] for d in cutting)]
    return counts


def _chunk(extent: int, parts: int, index: int) -> Run:
    size = math.ceil(extent / parts)
    return min(index * size, extent), min((index + 1) * size, extent)


def _length(runs: tuple[Run, ...]) -> int:
    return sum(stop - start for start, stop in runs)


def _select(runs: tuple[Run, ...], start: int, stop: int) -> Iterator[Run]:
    """Positions start to stop of the concatenated runs."""
    for first, last in runs:
        if max(start, 0) < min(stop, last - first):
            yield first + max(start, 0), first + min(stop, last - first)
        start, stop = start - (last - first), stop - (last - first)


def _merged(runs: tuple[Run, ...]) -> tuple[Run, ...]:
    merged: list[Run] = []
    for start, stop in runs:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)


def _overlaps(runs: tuple[Run, ...], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(local start, start within [start, stop), length) of every run's part in [start, stop)."""
    local = 0
    for first, last in runs:
        low, high = max(first, start), min(last, stop)
        if low < high:
            yield local + low - first, low - start, high - low
        local += last - first
