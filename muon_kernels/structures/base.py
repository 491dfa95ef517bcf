"""What all structured square matrices share: they are linear spaces that are closed under the matrix product."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

S = TypeVar("S", bound="Structure")


@dataclasses.dataclass(frozen=True, eq=False)
class Structure(ABC):
    """A D x D matrix that stores only what its structure lets it hold; its fields are tensors or smaller structures.

    Sums, multiples and products of two matrices of one class are of that class, exactly. The classes follow those of
    SINGD (https://arxiv.org/abs/2312.05705): where a symmetric matrix goes into a one-sided structure, the one side
    carries the entries of both, so that half the sum with its transpose is the symmetric matrix again.
    """

    @classmethod
    @abstractmethod
    def _project(cls: type[S], matrix: Tensor) -> S:
        """`from_dense` for a checked matrix; shares no memory with it."""

    @abstractmethod
    def to_dense(self) -> Tensor:
        """The matrix [D, D]."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """The diagonal [D]."""

    @abstractmethod
    def _apply(self, x: Tensor) -> Tensor:
        """The matrix times x [D, k]."""

    @abstractmethod
    def _apply_transposed(self, x: Tensor) -> Tensor:
        """The transposed matrix times x [D, k]."""

    @abstractmethod
    def _multiply(self: S, other: S) -> S:
        """The product with a matrix of the same class and size."""

    @classmethod
    def from_dense(cls: type[S], matrix: Tensor) -> S:
        """The structured matrix of a symmetric one. Symmetry is not checked.

        Args:
            matrix: [D, D], real floating. It is copied.

        Raises:
            TypeError, ValueError: it is not real floating or not square.
        """
        if not matrix.is_floating_point():
            raise TypeError(f"matrix must be real floating point, got {matrix.dtype}")
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix must be square, got shape {list(matrix.shape)}")
        return cls._project(matrix)

    @classmethod
    def eye(cls: type[S], dim: int, dtype: torch.dtype | None = None, device: torch.device | None = None) -> S:
        """The identity of size D = dim, which every structure holds."""
        return cls._project(torch.eye(dim, dtype=dtype, device=device))

    @classmethod
    def zeros(cls: type[S], dim: int, dtype: torch.dtype | None = None, device: torch.device | None = None) -> S:
        """The zero matrix of size D = dim."""
        return cls._project(torch.zeros(dim, dim, dtype=dtype, device=device))

    @classmethod
    def from_mat_inner(cls: type[S], x: Tensor) -> S:
        """The structured matrix of X X^T, for X [D, k]."""
        return cls.from_dense(x @ x.mT)

    def from_inner(self: S, x: Tensor | None = None) -> S:
        """The structured matrix of K^T X X^T K, for X [D, k]; of K^T K without X."""
        return self.from_mat_inner(self.to_dense().mT if x is None else self.rmatmat(x))

    def rmatmat(self, x: Tensor) -> Tensor:
        """K^T X, for X [D, k]."""
        self._check_rows(x)
        return self._apply_transposed(x)

    def __matmul__(self: S, other: S | Tensor) -> Any:
        """A structure times one of its own class is of that class; times a tensor [D, k] it is a tensor."""
        if isinstance(other, Tensor):
            self._check_rows(other)
            return self._apply(other)
        self._check_same(other)
        return self._multiply(other)

    def __add__(self: S, other: S) -> S:
        self._check_same(other)
        return self._combine(torch.add, other)

    def __sub__(self: S, other: S) -> S:
        self._check_same(other)
        return self._combine(torch.sub, other)

    def __mul__(self: S, factor: float) -> S:
        return self._combine(lambda tensor: tensor * factor)

    __rmul__ = __mul__

    @property
    def dim(self) -> int:
        """D."""
        return self.diagonal().shape[0]

    def named_tensors(self) -> dict[str, Tensor]:
        """The stored tensors; those of a part are named part.tensor."""
        named: dict[str, Tensor] = {}
        for field in dataclasses.fields(self):
            part = getattr(self, field.name)
            if isinstance(part, Tensor):
                named[field.name] = part
            else:
                named |= {f"{field.name}.{name}": tensor for name, tensor in part.named_tensors().items()}
        return named

    def average_trace(self) -> Tensor:
        """tr(K) / D."""
        return self.diagonal().mean()

    def frobenius_norm(self) -> Tensor:
        """The Frobenius norm of the dense matrix."""
        return torch.stack([tensor.square().sum() for tensor in self.named_tensors().values()]).sum().sqrt()

    def infinity_vector_norm(self) -> Tensor:
        """The largest absolute entry; 0 for D = 0."""
        return torch.cat([tensor.flatten() for tensor in self.named_tensors().values()]).norm(math.inf)

    def _combine(self: S, function: Callable[..., Tensor], *others: S) -> S:
        """The same class from `function` of corresponding tensors."""
        parts = {}
        for field in dataclasses.fields(self):
            mine, *theirs = (getattr(matrix, field.name) for matrix in (self, *others))
            parts[field.name] = (
                function(mine, *theirs) if isinstance(mine, Tensor) else mine._combine(function, *theirs)
            )
        return type(self)(**parts)

    def _check_same(self, other: Any) -> None:
        if type(other) is not type(self):
            raise TypeError(f"{type(self).__name__} needs an operand of its own class, got {type(other).__name__}")
        if other.dim != self.dim:
            raise ValueError(f"both matrices must be {self.dim} x {self.dim}, got {other.dim} x {other.dim}")

    def _check_rows(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[0] != self.dim:
            raise ValueError(f"x must be [{self.dim}, k], got {list(x.shape)}")
