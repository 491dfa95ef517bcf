"""What the commands of the examples share."""

import argparse
import math
import statistics
from collections.abc import Sequence

import numpy as np
import torch

import muon_kernels


def positive(text: str) -> int:
    """A whole number from the command line, at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def versions() -> dict[str, str]:
    """What results were made with."""
    return {"muon_kernels": muon_kernels.__version__, "torch": torch.__version__}


def mean_std(seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (of a sample; 0 for one seed) of [seeds, points] at every point."""
    return seeds.mean(0), seeds.std(0, ddof=min(1, len(seeds) - 1))


def mean_text(values: Sequence[float], digits: int) -> str:
    """The mean, and ± the standard deviation where there are several values; "diverged" if one is not finite."""
    if not all(map(math.isfinite, values)):
        return "diverged"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean}±{statistics.stdev(values):.{digits}f}"
