"""Chains of products as data: what runs on which part of one workspace, in which order.

A chain is a list of products for a batch of matrices of one shape; products of one chain follow each other, chains are
independent. A program is all chains of one wave as flat lists of numbers, so that it can be built once for given
shapes, passes through torch.library, and a backend may run it as it likes: chain by chain, or all side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from .workspace import padded

BUFFER_FIELDS = 6
"""Integers a buffer: offset, batch, rows, cols, batch stride, row stride; in elements."""

PRODUCT_FIELDS = 9
"""Integers a product: its `Kind`, the operands a, b, c, out, norms, and the powers of the matrix's gain that alpha,
beta and delta are multiplied by, 0 without norms. An operand is twice the number of its buffer, plus one if it is
transposed; -1 stands for none."""

SCALAR_FIELDS = 3
"""Numbers a product: alpha, beta, delta."""

NORM_ROWS = 32
"""Rows of a matrix in a pair of numbers that `ProgramBuilder.gram_norms` writes."""

COUNTER_SIZE = 4
"""Bytes of what a backend may count in for a product."""

NONE = -1


class Kind(IntEnum):
    """What a product computes; `ProgramBuilder` has a method for each."""

    GEMM_ADD = 0
    SYMM_GEMM = 1
    GRAM_NORMS = 2


@dataclass(frozen=True)
class Program:
    """Chains on one workspace.

    elements: of the workspace: `elements_needed` or more.
    buffers, products, scalars: the lists that the constants above describe.
    chains: (number of buffers, number of products) of each chain; its buffers and products follow those of the last.
    end: where the last buffer ends, in elements.
    """

    elements: int
    buffers: tuple[int, ...]
    products: tuple[int, ...]
    scalars: tuple[float, ...]
    chains: tuple[int, ...]
    end: int = field(init=False)

    def __post_init__(self) -> None:
        ends = [offset + batch * stride for offset, batch, _, _, stride, _ in rows_of(self.buffers, BUFFER_FIELDS)]
        object.__setattr__(self, "end", max([0, *ends]))

    @property
    def lists(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...], tuple[int, ...]]:
        """What `muon_kernels.ops.chains` is given of it, in its order."""
        return self.buffers, self.products, self.scalars, self.chains

    def elements_needed(self, element_size: int) -> int:
        """Of a workspace with elements of that many bytes: behind the last buffer it has room for a 32-bit counter a
        product, where a backend may write."""
        return elements_with_counters(self.end, len(self.products) // PRODUCT_FIELDS, element_size)


class Operand(NamedTuple):
    """A buffer of a chain, as it lies in memory or transposed; `rows` and `cols` are those of the operand."""

    buffer: int
    rows: int
    cols: int
    transposed: bool = False

    @property
    def mT(self) -> Operand:
        return Operand(self.buffer, self.cols, self.rows, not self.transposed)


@dataclass
class ProgramBuilder:
    """Collects the chains of a program; offers the ops that a chain is written in.

    element_size: bytes of an element; rows of all buffers start on 16-byte boundaries.
    """

    element_size: int
    elements: int = 0
    buffers: list[int] = field(default_factory=list)
    products: list[int] = field(default_factory=list)
    scalars: list[float] = field(default_factory=list)
    chains: list[int] = field(default_factory=list)
    batch: int = 0

    def chain(self, batch: int) -> None:
        """Begins the chain of `batch` matrices."""
        self.batch = batch
        self.chains += (0, 0)

    def buffer(self, rows: int, cols: int) -> Operand:
        """A new [batch, rows, cols] for the chain that was begun last."""
        row = padded(cols, self.element_size)
        self.buffers += (self.elements, self.batch, rows, cols, rows * row, row)
        self.elements += self.batch * rows * row
        self.chains[-2] += 1
        return Operand(self.chains[-2] - 1, rows, cols)

    def carve(self, operand: Operand, side: int, most: int) -> list[Operand]:
        """At most `most` [batch, side, side] in the memory of `operand`'s buffer, which they overwrite, if they fit.

        They are scratch: what a product has read of them may be gone after the chain."""
        own = self.chains[-2] * BUFFER_FIELDS
        offset, batch, rows, _, _, pitch = rows_of(self.buffers[-own:], BUFFER_FIELDS)[operand.buffer]
        row = padded(side, self.element_size)
        count = min(most, rows * pitch // (side * row))
        for i in range(count):
            self.buffers += (offset + i * batch * side * row, batch, side, side, side * row, row)
        self.chains[-2] += count
        return [Operand(self.chains[-2] - count + i, side, side) for i in range(count)]

    def symm_gemm(
        self,
        a: Operand,
        b: Operand,
        out: Operand,
        *,
        alpha: float = 1.0,
        c: Operand | None = None,
        beta: float = 0.0,
        delta: float = 0.0,
        norms: Operand | None = None,
        powers: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        """out <- alpha a b + beta c + delta I; b is the transpose of a, or both are symmetric and commute.

        norms: of `gram_norms`. alpha, beta and delta are multiplied by these `powers`, not negative, of each matrix's
            gain.
        """
        self._product(Kind.SYMM_GEMM, a, b, c, out, (alpha, beta, delta), norms, powers)

    def gemm_add(self, a: Operand, b: Operand, out: Operand, *, c: Operand | None = None, beta: float = 0.0) -> None:
        """out <- a b + beta c."""
        self._product(Kind.GEMM_ADD, a, b, c, out, (1.0, beta, 0.0))

    def gram_norms(self, gram: Operand) -> Operand:
        """What tells the gain of an X from its Gram matrix XX^T: by how much its Frobenius norm exceeds its Schatten-4
        norm, the fourth root of the sum of its singular values' fourth powers, which bounds them as well.

        The gain is sqrt(tr XX^T / ||XX^T||_F), between 1 and the fourth root of the side; that of the zero matrix is 0.
        Written are for every `NORM_ROWS` rows of XX^T a number whose squares add up to ||XX^T||_F^2, and, as a second
        row, one of those that add up to the trace. They are scratch: a backend may keep the gain elsewhere.
        """
        norms = self.buffer(2, -(-gram.rows // NORM_ROWS))
        self._append(Kind.GRAM_NORMS, (gram, None, None, norms, None), (0, 0, 0), (1.0, 0.0, 0.0))
        return norms

    def build(self) -> Program:
        # A chain that has no product here may have one in another program on the same workspace.
        counters = max(len(self.products) // PRODUCT_FIELDS, len(self.chains) // 2)
        elements = elements_with_counters(self.elements, counters, self.element_size)
        return Program(elements, tuple(self.buffers), tuple(self.products), tuple(self.scalars), tuple(self.chains))

    def _product(
        self,
        kind: Kind,
        a: Operand,
        b: Operand,
        c: Operand | None,
        out: Operand,
        scalars: tuple[float, float, float],
        norms: Operand | None = None,
        powers: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        assert (a.rows, a.cols, b.cols) == (out.rows, b.rows, out.cols), (a, b, out)
        assert c is None or c[1:] == out[1:], (c, out)
        assert norms is not None or not any(powers), powers
        self._append(kind, (a, b, c, out, norms), powers, scalars)

    def _append(
        self,
        kind: Kind,
        operands: tuple[Operand | None, ...],
        powers: tuple[int, int, int],
        scalars: tuple[float, float, float],
    ) -> None:
        self.products += (int(kind), *(NONE if x is None else 2 * x.buffer + x.transposed for x in operands), *powers)
        self.scalars += scalars
        self.chains[-1] += 1


def elements_with_counters(elements: int, counters: int, element_size: int) -> int:
    """Of a workspace whose buffers take `elements`."""
    return elements + -(-COUNTER_SIZE * counters // element_size)


def rows_of(numbers: Sequence[int], width: int) -> list[Sequence[int]]:
    """A flat list cut into pieces of `width`."""
    return [numbers[i : i + width] for i in range(0, len(numbers), width)]


def view(workspace: Tensor, buffer: Sequence[int]) -> Tensor:
    """[batch, rows, cols] of a workspace of the program's dtype, for the buffer's BUFFER_FIELDS integers."""
    offset, batch, rows, cols, batch_stride, row_stride = buffer
    if torch.compiler.is_compiling():  # which writes to no view by strides; outside, that one costs half as much
        whole = workspace[offset : offset + batch * batch_stride]
        return whole.view(batch, batch_stride // row_stride, row_stride)[:, :rows, :cols]
    return workspace[offset:].as_strided((batch, rows, cols), (batch_stride, row_stride, 1))
