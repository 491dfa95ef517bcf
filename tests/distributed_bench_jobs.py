"""The benchmark of several ranks, on the ranks of a pool."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))  # last, so that an installed muon_kernels is the one tested

from bench import bench_distributed


def run_bench(arguments: list[str], gate: float = bench_distributed.GATE) -> bool:
    """Whether all is well with ours."""
    bench_distributed.GATE = gate
    return bench_distributed.run(bench_distributed.parse([*arguments, "--smoke"]), torch.device("cpu"))
