"""Tensors of any rank seen as matrices: what the elementwise kernels walk over."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def as_matrices(tensors: Sequence[Tensor]) -> tuple[int, ...] | None:
    """Rows and columns, the tensors' pointers, then each tensor's row stride and column stride, in elements.

    The tensors have one shape. Their dimensions are dropped (size 1), sorted (by the first tensor's strides) and merged
    where that is possible for all of them at once: the order of elements is kept between the tensors, not within.

    Returns:
        2 + 3 len(tensors) integers, or None if more than two dimensions remain.
    """
    first = tensors[0]
    strides = [t.stride() for t in tensors]
    dims = [d for d in range(first.dim()) if first.shape[d] != 1]
    dims.sort(key=lambda d: strides[0][d], reverse=True)
    sizes: list[int] = []
    merged: list[list[int]] = []  # for each kept dimension, the tensors' strides
    for d in dims:
        size, here = first.shape[d], [s[d] for s in strides]
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
        merged.insert(0, [0] * len(tensors))
    pairs = zip(merged[0], merged[1], strict=True)
    return (*sizes, *(t.data_ptr() for t in tensors), *(stride for pair in pairs for stride in pair))
