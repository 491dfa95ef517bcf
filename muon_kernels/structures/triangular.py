"""Block-triangular matrices of two parts: the hierarchical structure and arrows."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from .base import Structure
from .blocks import Dense, Diagonal

B = TypeVar("B", bound="BlockTriangular")


@dataclass(frozen=True, eq=False)
class BlockTriangular(Structure):
    """[[first, corner], [0, second]], or, if not `upper`, [[first, 0], [corner, second]]; one part has a fixed size.

    Subclasses name the classes of the two parts, and the size of the first (`leading`) or of the second (`trailing`).
    A matrix that is smaller has only that part. The corner gets the entries of both sides.
    """

    upper: ClassVar[bool]
    parts: ClassVar[tuple[type[Structure], type[Structure]]]
    leading: ClassVar[int | None] = None
    trailing: ClassVar[int | None] = None
    first: Structure
    corner: Tensor
    second: Structure

    @classmethod
    def _project(cls: type[B], matrix: Tensor) -> B:
        dim = matrix.shape[0]
        k = min(cls.leading, dim) if cls.leading is not None else dim - min(cls.trailing or 0, dim)
        above, below = matrix[:k, k:], matrix[k:, :k]
        corner = cls._corner(above, below.mT) if cls.upper else cls._corner(below, above.mT)
        return cls(cls.parts[0]._project(matrix[:k, :k]), corner, cls.parts[1]._project(matrix[k:, k:]))

    @staticmethod
    def _corner(own_side: Tensor, other_side: Tensor) -> Tensor:
        return own_side + other_side

    def to_dense(self) -> Tensor:
        first, second = self.first.to_dense(), self.second.to_dense()
        none = torch.zeros_like(self.corner.mT)
        above, below = (self.corner, none) if self.upper else (none, self.corner)
        return torch.cat([torch.cat([first, above], 1), torch.cat([below, second], 1)])

    def diagonal(self) -> Tensor:
        return torch.cat([self.first.diagonal(), self.second.diagonal()])

    def _apply(self, x: Tensor) -> Tensor:
        return self._times(x, transposed=False)

    def _apply_transposed(self, x: Tensor) -> Tensor:
        return self._times(x, transposed=True)

    def _multiply(self: B, other: B) -> B:
        # Either corner is what one part of self does to the other corner, plus its own corner times a part of other.
        if self.upper:
            corner = self.first._apply(other.corner) + other.second._apply_transposed(self.corner.mT).mT
        else:
            corner = self.second._apply(other.corner) + other.first._apply_transposed(self.corner.mT).mT
        return type(self)(self.first._multiply(other.first), corner, self.second._multiply(other.second))

    def _times(self, x: Tensor, transposed: bool) -> Tensor:
        k = self.first.dim
        head, tail = x[:k], x[k:]
        if transposed:
            top, bottom, corner = (
                self.first._apply_transposed(head),
                self.second._apply_transposed(tail),
                self.corner.mT,
            )
        else:
            top, bottom, corner = self.first._apply(head), self.second._apply(tail), self.corner
        if self.upper != transposed:
            return torch.cat([top + corner @ tail, bottom])
        return torch.cat([top, bottom + corner @ head])


class _Hierarchical(BlockTriangular):
    @staticmethod
    def _corner(own_side: Tensor, other_side: Tensor) -> Tensor:
        return 2 * own_side


@functools.cache
def hierarchical(leading: int, trailing: int) -> type[BlockTriangular]:
    """The class [[A, B1, B2], [0, C, 0], [0, D, E]] with dense A and E and a diagonal C.

    A is `leading` rows and E `trailing` rows large; a small matrix fills A first, then E. `from_dense` doubles the
    entries above A's right and left of E, and ignores those on the other side.

    Raises:
        ValueError: a size below 0.
    """
    if min(leading, trailing) < 0:
        raise ValueError(f"leading and trailing must be >= 0, got {leading} and {trailing}")
    lower = {"upper": False, "parts": (Diagonal, Dense), "trailing": trailing}
    inner = type(f"_HierarchicalRest{trailing}", (_Hierarchical,), lower)
    upper = {"upper": True, "parts": (Dense, inner), "leading": leading}
    return type(f"Hierarchical{leading}_{trailing}", (_Hierarchical,), upper)


class LowerArrowDown(BlockTriangular):
    """A diagonal and a full last row."""

    upper = False
    parts = (Diagonal, Dense)
    trailing = 1


class UpperArrowDown(BlockTriangular):
    """A diagonal and a full last column."""

    upper = True
    parts = (Diagonal, Dense)
    trailing = 1


class LowerArrowUp(BlockTriangular):
    """A diagonal and a full first column."""

    upper = False
    parts = (Dense, Diagonal)
    leading = 1


class UpperArrowUp(BlockTriangular):
    """A diagonal and a full first row."""

    upper = True
    parts = (Dense, Diagonal)
    leading = 1
