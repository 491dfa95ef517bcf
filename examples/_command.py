"""What the commands of the examples share."""

import argparse
import json
import math
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

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


def command_line(name: str, arguments: Sequence[str] | None) -> str:
    """The command that repeats a run of `name`.py with these arguments; None: those of this process."""
    return shlex.join(["python", f"examples/{name}.py", *(sys.argv[1:] if arguments is None else arguments)])


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def write_run(folder: Path, command: str, device: torch.device) -> None:
    """`run.json` in a new result folder: what made its figures."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"command": command, "device": device_name(device), "versions": versions()}
    (folder / "run.json").write_text(json.dumps(about, indent=1) + "\n")


def mean_std(seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (of a sample; 0 for one seed) of [seeds, points] at every point."""
    return seeds.mean(0), seeds.std(0, ddof=min(1, len(seeds) - 1))


def mean_text(values: Sequence[float], digits: int) -> str:
    """The mean, and ± the standard deviation where there are several values; "diverged" if one is not finite."""
    if not all(map(math.isfinite, values)):
        return "diverged"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean}±{statistics.stdev(values):.{digits}f}"
