"""What a plan weighs: Newton-Schulz work against traffic. Rates are data; `python -m bench.calibrate` fits them."""

from __future__ import annotations

from typing import NamedTuple


class Hardware(NamedTuple):
    """Rates of one rank.

    ns_flops: floating-point operations a second of a Newton-Schulz chain, counted as `ns_flops` does.
    ns_elements: elements a second of what the same passes over, counted as `ns_elements` does (norm, division, copies,
        what products read and write).
    chain_seconds: what the chains that run together cost whatever their sizes (latencies of products that wait for
        one another).
    link: bytes a second that a rank sends, and at the same time receives.
    memory: bytes a second of the elementwise passes.
    collective_seconds, peer_seconds: what a collective costs whatever its size, and for each peer.
    measured: where the rates of a rank by itself were measured; empty: nowhere, so that predictions are uncalibrated.
        Those of links and collectives are assumptions everywhere.
    """

    ns_flops: float
    ns_elements: float
    chain_seconds: float
    link: float
    memory: float
    collective_seconds: float
    peer_seconds: float
    measured: str = ""


HARDWARE: dict[str, Hardware] = {
    "cpu": Hardware(5e10, 1e9, 1e-5, 1e9, 1e10, 2e-4, 1e-5),
    "cuda": Hardware(
        ns_flops=6.79e14,
        ns_elements=1.5e11,
        chain_seconds=6.65e-5,
        link=3e11,
        memory=2.7e12,
        collective_seconds=2e-5,
        peer_seconds=1e-6,
        measured="one H100 80GB HBM3 (bench/results/orthogonalize-h100.json, elementwise-h100.json)",
    ),
}
"""By device type: what the planner decides with. Every rank must see the same numbers. "cpu": orders of magnitude."""


def ns_flops(rows: int, cols: int, steps: int) -> float:
    """Fewest FLOPs of a chain whose symmetric products take half the work: steps (3 m^2 n + m^3) of the standard one,
    or (4 steps - 6) m^3 + 6 m^2 n of the Gram one with a restart if that is cheaper; m is the shorter side."""
    m, n = min(rows, cols), max(rows, cols)
    standard = steps * (3.0 * m * m * n + m**3)
    return min(standard, (4.0 * steps - 6.0) * m**3 + 6.0 * m * m * n) if steps > 2 else standard


def ns_elements(rows: int, cols: int) -> int:
    """Elements of a matrix and of its Gram matrix: of what a chain reads and writes."""
    return rows * cols + min(rows, cols) ** 2


def ns_seconds(rows: int, cols: int, steps: int, hardware: Hardware) -> float:
    """Predicted time that one matrix adds to the chains that run together."""
    return ns_flops(rows, cols, steps) / hardware.ns_flops + ns_elements(rows, cols) / hardware.ns_elements


def cheaper_redundant(rows: int, cols: int, steps: int, hardware: Hardware) -> bool:
    """Whether every replica multiplies a matrix sooner than its result travels; both sides without their constants and
    in 16 bit, which the rates are of: more bits slow a chain down no less than they slow down traffic."""
    return ns_seconds(rows, cols, steps, hardware) < rows * cols * 2 / hardware.link
