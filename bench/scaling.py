"""The tables of docs/scaling.md: what the simulator predicts, from 8 to 4096 GPUs or beside what was measured.

    python -m bench.scaling
    python -m bench.scaling bench/results/distributed-h100-x2.json bench/results/distributed-h100-x4.json

Rates of one GPU are those measured on an H100 (muon_kernels/distributed/costs.py). The link beside measurements is the
fastest all-to-all of their run; from 8 GPUs on it is an assumption: HOST_LINK within a host of 8, NETWORK_LINK for
everything, also within hosts, as soon as there are several.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from muon_kernels.distributed.costs import HARDWARE
from muon_kernels.distributed.models import MODELS, Transformer
from muon_kernels.distributed.simulate import Prediction, model_plan, simulate

from .floors import STEPS
from .layouts import LAYOUTS
from .results import Row, load
from .shared import MODEL_CELLS

HOST, HOST_LINK, NETWORK_LINK = 8, 3e11, 4.5e10
SHARDS = {"llama-8b": 64, "llama-70b": 256, "llama-405b": 512}
"""Ranks of an HSDP replica."""

WORLDS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Compared(NamedTuple):
    """A measured step and its prediction; seconds."""

    row: Row
    predicted: float

    @property
    def error(self) -> float:
        """Of the prediction, relative to the measurement."""
        return self.predicted / self.row.median - 1


def predict(model: Transformer, sides: tuple[int, ...], layout: str, link: float, storage_size: int = 4) -> Prediction:
    """A step over a link of so many bytes a second; parameters, gradients and momenta have `storage_size` bytes."""
    rates = HARDWARE["cuda"]._replace(link=link)
    made = model_plan(model, sides, layout, rates, STEPS)
    return simulate(made, steps=STEPS, hardware=rates, storage_size=storage_size)


def compare(path: Path) -> list[Compared]:
    """The steps of ours in a results file of several ranks, if the simulator knows their layout."""
    run = load(path)
    link = max(entry["bytes_per_s"] for entry in run.link)
    simulated = {layout.name: layout for layout in LAYOUTS if layout.simulated}
    models = {name: model for name, model, _ in MODEL_CELLS}
    found = []
    for row in (row for row in run.rows if row.ours):
        model, _, where = row.cell.partition(f" {row.info['dtype']}, ")
        name, _, world = where.rpartition(" on ")
        sides, layout = (1,), "fsdp"
        if where != "alone":
            if name not in simulated:
                continue
            sides, layout = simulated[name].sides(int(world)), simulated[name].simulated
        predicted = predict(models[model], sides, layout, link, getattr(torch, row.info["dtype"]).itemsize)
        found.append(Compared(row, predicted.step))
    return found


def rows(model: str) -> Iterator[tuple[str, ...]]:
    """Of one model's table: FSDP2 over all ranks, and HSDP as soon as there are several replicas."""
    transformer = MODELS[model]
    alone = predict(transformer, (1,), "fsdp", HOST_LINK).step
    for world in WORLDS:
        cells = [str(world)]
        shards = SHARDS[model]
        for sides, layout in (((world,), "fsdp"), ((world // shards, shards), "hsdp")):
            if sides[0] < 2:
                cells += ["–"] * 3
                continue
            link = HOST_LINK if math.prod(sides) <= HOST else NETWORK_LINK
            found = predict(transformer, sides, layout, link)
            cells += [f"{found.step * 1e3:.3g}", f"{alone / (world * found.step):.2f}", found.bound]
        yield tuple(cells)


def print_scaling() -> None:
    """A table for each model."""
    for model, shards in SHARDS.items():
        biggest = predict(MODELS[model], (1,), "fsdp", HOST_LINK)
        print(f"\n## {model}: {biggest.step:.3g} s on one GPU, largest matrix {biggest.largest * 1e3:.3g} ms\n")
        print(f"| GPUs | FSDP2, ms | efficiency | bound by | HSDP, replicas of {shards}, ms | efficiency | bound by |")
        print("|---|---:|---:|---|---:|---:|---|")
        for cells in rows(model):
            print(f"| {' | '.join(cells)} |", flush=True)


def print_compared(paths: Sequence[Path]) -> None:
    """Measured and predicted milliseconds; the efficiency is the measured one."""
    print("| ms | measured | predicted | error | efficiency, measured |\n|---|---:|---:|---:|---:|")
    for row, predicted, error in ((c.row, c.predicted, c.error) for path in paths for c in compare(path)):
        efficiency = f"{row.info['efficiency']:.2f}"
        print(f"| {row.cell} | {row.median * 1e3:.3g} | {predicted * 1e3:.3g} | {error:+.1%} | {efficiency} |")


def main() -> None:
    """Prints markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="results of several ranks to compare with")
    files = parser.parse_args().files
    print_compared(files) if files else print_scaling()


if __name__ == "__main__":
    main()
