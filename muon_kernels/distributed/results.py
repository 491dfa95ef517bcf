"""Results of chains that the last products write where they travel from or stay, or step parameters with, instead of a
copy.

One product for each piece of all equal matrices that run together: its rows are those rows of the left factor, its
columns those columns of the right one, element by element the bits of the whole product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple

from torch import Tensor

from .. import dispatch
from ..workspace import ALIGNMENT
from .exchange import Segment

MINIMUM_SIDE = 256
"""Of a piece: two tiles of 128, of which a product of fewer rows or columns would leave more empty. By arithmetic, not
measured: a copy of an element takes an eighth of its product's time at an inner side of 4096."""

Place = tuple[Tensor, Mapping[int, Sequence[Segment]]]
"""A buffer, and the segments of each matrix in it by its number."""


class Target(NamedTuple):
    """The same piece of every matrix of a group, which lie as `out`, [count, rows, cols]."""

    group: int
    segments: tuple[Segment, ...]
    out: Tensor


def targets(
    groups: Sequence[tuple[int, int, int]], numbers: Sequence[int], places: Sequence[Place]
) -> list[list[Target]] | None:
    """Where all pieces go, in each place; None if some cannot be written by products: the pieces of a group's matrices
    lie unevenly or not on ALIGNMENT bytes, or one is small, or the factors have rows that do not end there.

    Args:
        groups: (count, rows, cols) of the matrices of each.
        numbers: of the matrices, in the order of their groups.
    """
    found: list[list[Target]] = [[] for _ in places]
    rest = iter(numbers)
    for group, (count, *sides) in enumerate(groups):
        own = list(islice(rest, count))
        for (buffer, by_number), into in zip(places, found, strict=True):
            of_matrix = [by_number.get(number, ()) for number in own]
            if len(set(map(len, of_matrix))) > 1:
                return None
            for segments in zip(*of_matrix, strict=True):
                out = _stacked(buffer, segments, min(sides))
                if out is None:
                    return None
                into.append(Target(group, segments, out))
    return found


def multiply(left: Sequence[Tensor], right: Sequence[Tensor], into: Sequence[Target]) -> None:
    """Writes every target's piece of left[group] right[group]."""
    if into:
        outs = [target.out for target in into]
        dispatch.run("gemm_add", *_operands(left, right, into), [], outs, alpha=1.0, beta=0.0)


def multiply_and_apply(
    left: Sequence[Tensor], right: Sequence[Tensor], into: Sequence[Target], params: list[Tensor], **options: Any
) -> None:
    """Steps parameters by every target's piece of left[group] right[group], of which nothing is written.

    Args:
        params: one for each segment of every target.
        options: keywords of `ops.gemm_apply`.
    """
    if into:
        dispatch.run("gemm_apply", *_operands(left, right, into), params, **options)


def _operands(
    left: Sequence[Tensor], right: Sequence[Tensor], into: Sequence[Target]
) -> tuple[list[Tensor], list[Tensor]]:
    pieces = [target.segments[0].piece for target in into]
    a = [left[t.group][:, p.at_row : p.at_row + p.rows] for t, p in zip(into, pieces, strict=True)]
    b = [right[t.group][:, :, p.at_col : p.at_col + p.cols] for t, p in zip(into, pieces, strict=True)]
    return a, b


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
