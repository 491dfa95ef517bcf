"""What a plan weighs: Newton-Schulz work against traffic. Rates are data; none of them has been measured yet."""

from __future__ import annotations

from typing import NamedTuple


class Hardware(NamedTuple):
    """Rates of one rank.

    ns_flops: floating-point operations a second of a Newton-Schulz chain.
    matrix_seconds: what a matrix costs whatever its size (launches).
    link: bytes a second that a rank sends, and at the same time receives.
    memory: bytes a second of the elementwise passes.
    collective_seconds, peer_seconds: what a collective costs whatever its size, and for each peer.
    measured: where the rates were measured; empty: nowhere, so that predictions are uncalibrated.
    """

    ns_flops: float
    matrix_seconds: float
    link: float
    memory: float
    collective_seconds: float
    peer_seconds: float
    measured: str = ""


HARDWARE: dict[str, Hardware] = {
    "cpu": Hardware(5e10, 1e-5, 1e9, 1e10, 2e-4, 1e-5),
    "cuda": Hardware(6.5e14, 1e-5, 3e11, 3e12, 2e-5, 1e-6),
}
"""Orders of magnitude by device type: what the planner decides with. Every rank must see the same numbers."""


def ns_flops(rows: int, cols: int, steps: int) -> float:
    """FLOPs of the standard chain with full products: steps (4 m^2 n + 2 m^3), m the shorter side."""
    m, n = min(rows, cols), max(rows, cols)
    return steps * (4.0 * m * m * n + 2.0 * m**3)


def ns_seconds(rows: int, cols: int, steps: int, hardware: Hardware) -> float:
    """Predicted time of one matrix's chain."""
    return hardware.matrix_seconds + ns_flops(rows, cols, steps) / hardware.ns_flops


def cheaper_redundant(rows: int, cols: int, steps: int, element_size: int, hardware: Hardware) -> bool:
    """Whether every replica multiplies a matrix sooner than its result travels; both sides without their constants."""
    return ns_flops(rows, cols, steps) / hardware.ns_flops < rows * cols * element_size / hardware.link
