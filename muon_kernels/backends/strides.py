"""Tensors of any rank seen as matrices: what the elementwise kernels walk over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Matrices(NamedTuple):
    """Tensors seen as matrices of one shape; `strides` are those of each tensor's rows and columns, in elements."""

    rows: int
    cols: int
    strides: tuple[tuple[int, int], ...]


def as_matrices(shape: Sequence[int], *strides: Sequence[int]) -> Matrices | None:
    """Tensors of one shape as matrices that start where they do, or None if more than two dimensions remain.

    Their dimensions are dropped (size 1), sorted (by the first tensor's strides) and merged where that is possible for
    all of them at once: the order of elements is kept between the tensors, not within.

    Args:
        strides: of each tensor.
    """
    dims = [d for d, size in enumerate(shape) if size != 1]
    dims.sort(key=lambda d: strides[0][d], reverse=True)
    sizes: list[int] = []
    merged: list[list[int]] = []  # for each kept dimension, the tensors' strides
    for d in dims:
        size, here = shape[d], [s[d] for s in strides]
        if merged and merged[-1] == [size * stride for stride in here]:
            sizes[-1] *= size
            merged[-1] = here
        else:
            sizes.append(size)
            merged.append(here)
    if len(sizes) > 2:
        return None
    while len(sizes) < 2:
        sizes.insert(0, 1)
        merged.insert(0, [0] * len(strides))
    return Matrices(sizes[0], sizes[1], tuple(zip(*merged, strict=True)))
