"""Fewest FLOPs and bytes of every measured piece of work: pure functions of shapes.

A chain of T steps on an r x c matrix, with m = min(r, c) and s = max(r, c) / m. A product whose result is known to be
symmetric counts half. One multiply-add is two FLOPs.
"""

from __future__ import annotations

from collections.abc import Mapping

from .cells import Shape

STEPS = 5


def dense_flops(rows: int, cols: int, batch: int = 1, steps: int = STEPS) -> float:
    """The standard chain without any use of symmetry, T(4s + 2)m^3: the count that speeds are usually quoted in."""
    m, s = _side_and_aspect(rows, cols)
    return batch * steps * (4 * s + 2) * m**3


def standard_flops(rows: int, cols: int, batch: int = 1, steps: int = STEPS) -> float:
    """The standard chain with symmetric products at half, T(3s + 1)m^3."""
    m, s = _side_and_aspect(rows, cols)
    return batch * steps * (3 * s + 1) * m**3


def gram_flops(rows: int, cols: int, batch: int = 1, steps: int = STEPS) -> float:
    """The Gram chain with one restart, (4T - 6 + 6s)m^3; one or two steps need no restart, (4T - 3 + 3s)m^3."""
    m, s = _side_and_aspect(rows, cols)
    if steps <= 2:
        return batch * (4 * steps - 3 + 3 * s) * m**3
    return batch * (4 * steps - 6 + 6 * s) * m**3


def minimal_flops(rows: int, cols: int, batch: int = 1, steps: int = STEPS) -> float:
    """The cheaper of the two chains."""
    return min(standard_flops(rows, cols, batch, steps), gram_flops(rows, cols, batch, steps))


def matrix_bytes(rows: int, cols: int, batch: int, itemsize: int) -> int:
    """An orthogonalisation reads its input once and writes its output once."""
    return 2 * rows * cols * batch * itemsize


def step_flops(counts: Mapping[Shape, int], steps: int = STEPS) -> tuple[float, float]:
    """(minimal, dense) FLOPs of one optimizer step."""
    return (
        sum(minimal_flops(*shape, count, steps) for shape, count in counts.items()),
        sum(dense_flops(*shape, count, steps) for shape, count in counts.items()),
    )


def step_bytes(counts: Mapping[Shape, int], itemsize: int) -> int:
    """Gradient read, momentum and parameter read and written, each of `itemsize`; the 16-bit matrix written."""
    elements = sum(rows * cols * count for (rows, cols), count in counts.items())
    return elements * (5 * itemsize + 2)


def op_cost(kind: str, rows: int, cols: int, count: int, wide: int, narrow: int) -> tuple[float, float, int]:
    """(minimal FLOPs, dense FLOPs, bytes) of one call of an op on `count` matrices.

    `wide` is the itemsize of parameters, gradients and momenta, `narrow` that of what the chain works on.
    """
    whole, square = rows * cols * count, rows * rows * count
    if kind == "gram":
        return rows * whole, 2 * rows * whole, narrow * (whole + square)
    if kind == "polynomial":
        return rows * square, 2 * rows * square, narrow * 2 * square
    if kind == "final":
        return 2 * rows * whole, 2 * rows * whole, narrow * (square + 2 * whole)
    elementwise = {"prologue": 3 * wide + narrow, "normalize": 2 * narrow, "apply": 2 * wide + narrow}
    return 0.0, 0.0, whole * elementwise[kind]


def _side_and_aspect(rows: int, cols: int) -> tuple[int, float]:
    m = min(rows, cols)
    return m, max(rows, cols) / m
