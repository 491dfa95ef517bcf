"""What is to be known of a list of tensors before its values, found once a step for all that asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import extension
from .dispatch import PLAIN

if TYPE_CHECKING:
    from ._C import TensorList


class Described(NamedTuple):
    """A list of tensors, and what is known of it.

    like: shape, dtype and device of each, and whether it is strided, as something to compare. It holds no tensor.
    read: the tensors as the CUDA kernels take them; None without the extension, for a compiler, or if one of them is
        not plain: a subclass's, or without memory of its own to point to (sparse, meta).
    """

    tensors: list[Tensor]
    like: Any
    read: TensorList | None

    @property
    def any_empty(self) -> bool:
        """Whether a tensor has no elements."""
        return not all(map(Tensor.numel, self.tensors)) if self.read is None else self.read.any_empty()

    def of(self, tensors: list[Tensor]) -> Described:
        """The same of another list; this one if it is the list."""
        return self if tensors is self.tensors else describe(tensors)


def describe(tensors: list[Tensor]) -> Described:
    """Reads a list. As long as the result is in use, neither the list nor its tensors' shapes and memory may change."""
    if not torch.compiler.is_compiling() and extension.unavailable_reason() is None:
        read = extension.load().read(tensors, PLAIN)  # in a quarter of the time
        if read is not None:
            return Described(tensors, read.like(), read)
    return Described(tensors, [(t.shape, t.dtype, t.device, t.layout) for t in tensors], None)
