"""Fits the rates that plans are made with: python -m bench.calibrate bench/results/orthogonalize-h100.json

Seconds of `batch` matrices of one shape = chain_seconds + batch (FLOPs / ns_flops + elements / ns_elements), by least
squares of relative errors over the captured times of one column. The numbers go into muon_kernels/distributed/costs.py.
Matrices whose shorter side is at most SMALL_SIDE are left out: their chains wait for no launch of another product.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from muon_kernels.distributed.costs import ns_elements, ns_flops

from .floors import STEPS
from .results import load

SMALL_SIDE = 128
"""Up to it a chain runs whole in one block, if that holds its matrices (kSmallSide in csrc/sm90/small_launch.h)."""

Measured = tuple[tuple[int, int, int], float]
"""((rows, cols, batch), seconds)"""


def captured_times(path: Path, provider: str) -> list[Measured]:
    """The times of a column of an `orthogonalize` results file, replayed from CUDA graphs."""
    rows = [
        row for row in load(path).rows if (row.bench, row.provider, row.mode) == ("orthogonalize", provider, "graph")
    ]
    return [(_shape(row.cell), row.median) for row in rows]


def is_small(shape: tuple[int, int, int]) -> bool:
    """Whether the fit leaves out this (rows, cols, batch)."""
    return min(shape[:2]) <= SMALL_SIDE


def fit(measured: Sequence[Measured]) -> tuple[float, float, float, np.ndarray]:
    """(chain_seconds, ns_flops, ns_elements, relative error of every measurement, also of those left out)."""
    seconds = np.array([median for _, median in measured])
    terms = np.array([(1.0, n * ns_flops(r, c, STEPS), n * ns_elements(r, c)) for (r, c, n), _ in measured])
    relative = terms / seconds[:, None]
    fitted = relative[[not is_small(shape) for shape, _ in measured]]
    scale = fitted.max(axis=0)
    weights = np.linalg.lstsq(fitted / scale, np.ones(len(fitted)), rcond=None)[0] / scale
    chain, per_flop, per_element = weights
    return chain, 1 / per_flop, 1 / per_element, relative @ weights - 1


def _shape(cell: str) -> tuple[int, int, int]:
    rows, cols, batch = (int(extent) for extent in cell.replace(" ", "").split("x"))
    return rows, cols, batch


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--provider", default="ours-cuda")
    options = parser.parse_args()
    measured = captured_times(options.file, options.provider)
    chain, flops, elements, errors = fit(measured)
    print(f"chain_seconds={chain:.3g}, ns_flops={flops:.3g}, ns_elements={elements:.3g}")
    for (shape, seconds), error in zip(measured, errors, strict=True):
        rows, cols, batch = shape
        left_out = ", left out" if is_small(shape) else ""
        print(f"{rows}x{cols} x{batch}: {seconds * 1e3:.3f} ms, {error:+.1%}{left_out}")
    errors = errors[[not is_small(shape) for shape, _ in measured]]
    print(f"relative error: root mean square {np.sqrt(np.mean(errors**2)):.1%}, largest {np.abs(errors).max():.1%}")


if __name__ == "__main__":
    main()
