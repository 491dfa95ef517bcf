"""Dense, diagonal and block-diagonal matrices: the structures that are closed under transposition too."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Structure


@dataclass(frozen=True, eq=False)
class Dense(Structure):
    """Every matrix. `matrix` [D, D]."""

    matrix: Tensor

    @classmethod
    def _project(cls, matrix: Tensor) -> Dense:
        return cls(matrix.clone())

    def to_dense(self) -> Tensor:
        return self.matrix.clone()

    def diagonal(self) -> Tensor:
        return self.matrix.diagonal()

    def _apply(self, x: Tensor) -> Tensor:
        return self.matrix @ x

    def _apply_transposed(self, x: Tensor) -> Tensor:
        return self.matrix.mT @ x

    def _multiply(self, other: Dense) -> Dense:
        return Dense(self.matrix @ other.matrix)


@dataclass(frozen=True, eq=False)
class Diagonal(Structure):
    """Diagonal matrices. `entries` [D]."""

    entries: Tensor

    @classmethod
    def _project(cls, matrix: Tensor) -> Diagonal:
        return cls(matrix.diagonal().clone())

    @classmethod
    def from_mat_inner(cls, x: Tensor) -> Diagonal:
        return cls(x.square().sum(1))

    def to_dense(self) -> Tensor:
        return torch.diag(self.entries)

    def diagonal(self) -> Tensor:
        return self.entries

    def _apply(self, x: Tensor) -> Tensor:
        return self.entries[:, None] * x

    _apply_transposed = _apply

    def _multiply(self, other: Diagonal) -> Diagonal:
        return Diagonal(self.entries * other.entries)


@dataclass(frozen=True, eq=False)
class BlockDiagonal(Structure):
    """Blocks of one size b and a smaller last one. `blocks` [D // b, b, b], `last` [D % b, D % b].

    `block_diagonal(b)` makes the class for a block size.
    """

    size: ClassVar[int]
    blocks: Tensor
    last: Tensor

    @classmethod
    def _project(cls, matrix: Tensor) -> BlockDiagonal:
        count = matrix.shape[0] // cls.size
        whole = count * cls.size
        grid = matrix[:whole, :whole].reshape(count, cls.size, count, cls.size)
        return cls(grid.diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone(), matrix[whole:, whole:].clone())

    @classmethod
    def from_mat_inner(cls, x: Tensor) -> BlockDiagonal:
        whole = x.shape[0] // cls.size * cls.size
        bands, rest = x[:whole].reshape(-1, cls.size, x.shape[1]), x[whole:]
        return cls(bands @ bands.mT, rest @ rest.mT)

    def to_dense(self) -> Tensor:
        return torch.block_diag(*self.blocks, self.last)

    def diagonal(self) -> Tensor:
        return torch.cat([self.blocks.diagonal(dim1=1, dim2=2).flatten(), self.last.diagonal()])

    def _apply(self, x: Tensor) -> Tensor:
        return self._times(self.blocks, self.last, x)

    def _apply_transposed(self, x: Tensor) -> Tensor:
        return self._times(self.blocks.mT, self.last.mT, x)

    def _multiply(self, other: BlockDiagonal) -> BlockDiagonal:
        return type(self)(self.blocks @ other.blocks, self.last @ other.last)

    @staticmethod
    def _times(blocks: Tensor, last: Tensor, x: Tensor) -> Tensor:
        count, size, _ = blocks.shape
        bands = x[: count * size].reshape(count, size, x.shape[1])
        return torch.cat([(blocks @ bands).reshape(count * size, x.shape[1]), last @ x[count * size :]])


@functools.cache
def block_diagonal(size: int) -> type[BlockDiagonal]:
    """The class of block-diagonal matrices with blocks of `size` x `size`.

    Raises:
        ValueError: size is below 1.
    """
    if size < 1:
        raise ValueError(f"size must be >= 1, got {size}")
    return type(f"Block{size}Diagonal", (BlockDiagonal,), {"size": size})
