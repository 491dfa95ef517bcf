"""Triangular Toeplitz matrices: one number a diagonal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from .base import Structure

T = TypeVar("T", bound="_TriangularToeplitz")


@dataclass(frozen=True, eq=False)
class _TriangularToeplitz(Structure):
    """`diagonals` [D]: entry k is the value of the k-th diagonal, counted from the main one."""

    diagonals: Tensor

    @classmethod
    def _project(cls: type[T], matrix: Tensor) -> T:
        # In the upside-down matrix, read with rows longer by one less than twice its size, every row begins one place
        # further to the right: what was a diagonal is now a column.
        dim = matrix.shape[0]
        padded = torch.nn.functional.pad(matrix.flip(0), (0, dim))
        sums = padded.flatten()[: dim * (2 * dim - 1)].view(dim, 2 * dim - 1).sum(0) if dim else matrix.sum(0)
        both = sums[dim - 1 :] + sums[:dim].flip(0)
        both[:1] /= 2
        return cls(both / torch.arange(dim, 0, -1, dtype=matrix.dtype, device=matrix.device))

    def diagonal(self) -> Tensor:
        return self.diagonals[:1].expand(self.diagonals.shape[0])

    def frobenius_norm(self) -> Tensor:
        lengths = torch.arange(len(self.diagonals), 0, -1, dtype=self.diagonals.dtype, device=self.diagonals.device)
        return (lengths * self.diagonals.square()).sum().sqrt()

    def _apply(self, x: Tensor) -> Tensor:
        return self.to_dense() @ x

    def _apply_transposed(self, x: Tensor) -> Tensor:
        return self.to_dense().mT @ x

    def _multiply(self: T, other: T) -> T:
        # The first column of a product of two lower ones; upper ones multiply as their transposes do, which commute.
        return type(self)(self._lower() @ other.diagonals)

    def _lower(self) -> Tensor:
        index = torch.arange(len(self.diagonals), device=self.diagonals.device)
        return self.diagonals[(index[:, None] - index).clamp_min(0)].tril()


@dataclass(frozen=True, eq=False)
class LowerToeplitz(_TriangularToeplitz):
    """Lower triangular: entry (i, j) is diagonals[i - j].

    `from_dense` averages the main diagonal and, for the others, adds the mean of the k-th diagonal above to the mean of
    the k-th below.
    """

    def to_dense(self) -> Tensor:
        return self._lower()


@dataclass(frozen=True, eq=False)
class UpperToeplitz(_TriangularToeplitz):
    """Upper triangular: entry (i, j) is diagonals[j - i]; otherwise as `LowerToeplitz`."""

    def to_dense(self) -> Tensor:
        return self._lower().mT.contiguous()
