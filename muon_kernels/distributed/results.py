"""Results of chains that the last products write where they travel from or stay, instead of a copy.

One product for each piece of all equal matrices that run together: its rows are those rows of the left factor, its
columns those columns of the right one, element by element the bits of the whole product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

from torch import Tensor

from .. import dispatch
from ..workspace import ALIGNMENT
from .exchange import Segment
from .layout import Piece

MINIMUM_SIDE = 256
"""Of a piece: two tiles of 128, of which a product of fewer rows or columns would leave more empty. By arithmetic, not
measured: a copy of an element takes an eighth of its product's time at an inner side of 4096."""

Place = tuple[Tensor, Mapping[int, Sequence[Segment]]]
"""A buffer, and the segments of each matrix in it by its number."""


class Target(NamedTuple):
    """A piece of every matrix of a group, which lie as `out`, [count, rows, cols]."""

    group: int
    piece: Piece
    out: Tensor


def targets(
    groups: Sequence[tuple[int, int, int]], numbers: Sequence[int], places: Sequence[Place]
) -> list[Target] | None:
    """Where all pieces go; None if some cannot be written by products: the pieces of a group's matrices lie unevenly or
    not on ALIGNMENT bytes, or one is small, or the factors have rows that do not end there.

    Args:
        groups: (count, rows, cols) of the matrices of each.
        numbers: of the matrices, in the order of their groups.
    """
    found: list[Target] = []
    rest = iter(numbers)
    for group, (count, *sides) in enumerate(groups):
        own = list(islice(rest, count))
        for buffer, by_number in places:
            of_matrix = [by_number.get(number, ()) for number in own]
            if len(set(map(len, of_matrix))) > 1:
                return None
            for segments in zip(*of_matrix, strict=True):
                out = _stacked(buffer, segments, min(sides))
                if out is None:
                    return None
                found.append(Target(group, segments[0].piece, out))
    return found


def multiply(left: Sequence[Tensor], right: Sequence[Tensor], into: Sequence[Target]) -> None:
    """Writes every target's piece of left[group] right[group]."""
    a = [left[group][:, piece.at_row : piece.at_row + piece.rows] for group, piece, _ in into]
    b = [right[group][:, :, piece.at_col : piece.at_col + piece.cols] for group, piece, _ in into]
    dispatch.run("gemm_add", a, b, [], [target.out for target in into], alpha=1.0, beta=0.0)


def _stacked(buffer: Tensor, segments: Sequence[Segment], inner: int) -> Tensor | None:
    """The same piece of several matrices, whose factors share a side of `inner`, as one [count, rows, cols] of a
    buffer."""
    _, first, offset = segments[0]
    rows, cols = first.rows, first.cols
    distances = {b.offset - a.offset for a, b in pairwise(segments)} or {rows * cols}
    distance = distances.pop()
    evenly = not distances and distance > 0 and all(s.piece[3:] == first[3:] for s in segments)
    step = ALIGNMENT // buffer.element_size()
    aligned = not any(x % step for x in (inner, first.at_col, cols, offset, distance))
    if not evenly or not aligned or min(rows, cols) < MINIMUM_SIDE:
        return None
    return buffer.as_strided((len(segments), rows, cols), (distance, cols, 1), offset)
