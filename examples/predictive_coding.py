"""Predictive coding beside backpropagation, weights stepped by Muon or Adam: accuracies over training, activity decay.

See docs/predictive_coding.md.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from _experiment import Cell, Experiment, Row, chosen, start
from _mnist_read import Mnist
from _mnist_train import prepare_splits
from _pc_train import CHANCE, DEFAULTS, OPTIMIZERS, best, train
from matplotlib.figure import Figure

from muon_kernels.diagnostics import seed_statistics
from muon_kernels.diagnostics.figures import draw_curves, line, log_y

METHODS = {
    "muPC": {"method": "pc", "parametrisation": "mupc", "skips": True},
    "PC": {"method": "pc", "parametrisation": "sp", "skips": True},
    "backpropagation": {"method": "bp", "parametrisation": "mupc", "skips": True},
}
DASHES = {"muPC": "-", "PC": ":", "backpropagation": "--"}
RATES = {"muPC": (0.01, 0.03, 0.1, 0.3), "PC": (3e-4, 1e-3, 3e-3, 0.01), "backpropagation": (0.01, 0.03, 0.1, 0.3)}
"""Weight learning rates that are tried; the figure shows the best."""


@dataclass(frozen=True)
class Settings:
    """How large the experiment is."""

    width: int = 64
    hidden: int = 8
    iterations: int = 100
    test_every: int = 10
    seeds: int = 3
    decays: tuple[float, ...] = (0.1, 0.01, 1e-3, 1e-4, 0.0)
    decay_iterations: int = 30
    decay_steps: tuple[int, ...] = (8, 50)


FULL = Settings(512, 16, 300, 30, 3, decay_iterations=300, decay_steps=(16, 100))


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    experiment, data = start("predictive_coding", __doc__.splitlines()[0], arguments)
    run(experiment, FULL if experiment.full else Settings(), data)


def run(experiment: Experiment, settings: Settings, data: Mnist) -> None:
    """All measurements, then all figures."""
    splits = prepare_splits(data, experiment.device, torch.float32)
    common = {"width": settings.width, "hidden": settings.hidden, "test_every": settings.test_every}
    cells: list[Cell] = [
        DEFAULTS
        | common
        | {"part": "training", "optimizer": o, "activation": "tanh", "rate": rate, "seed": seed}
        | {"iterations": settings.iterations, "inference_steps": settings.hidden}
        | network
        for name, network in METHODS.items()
        for o in OPTIMIZERS
        for rate in RATES[name]
        for seed in range(settings.seeds)
    ]
    training = experiment.measure(cells, partial(train, splits=splits), "training")
    cells = [
        DEFAULTS
        | common
        | {"part": "decay", "parametrisation": "sp", "skips": False, "optimizer": o, "activation": "linear"}
        | {"activity_decay": decay, "rate": 1e-3, "seed": 0}
        | {"iterations": settings.decay_iterations, "inference_steps": steps}
        for steps in settings.decay_steps
        for o in OPTIMIZERS
        for decay in settings.decays
    ]
    decays = experiment.measure(cells, partial(train, splits=splits), "activity decay")
    experiment.save({"training": draw_training(training), "activity_decay": draw_decays(decays, settings)}, dpi=90)
    print(summary(training))


def draw_training(rows: list[Row]) -> Figure:
    """Accuracy and loss over iterations of each method and optimizer at its best rate: mean and deviation of seeds."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    panels = {"accuracy": "Test accuracy", "loss": "Training loss, feed-forward pass"}
    for axes, (quantity, title) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        curves, x, styles = {}, {}, {}
        for name, network in METHODS.items():
            for optimizer in OPTIMIZERS:
                some = best(chosen(rows, optimizer=optimizer, **network), "rate")
                label = f"{optimizer}, {name}, lr {some[0]['rate']:g}"
                empty = CHANCE if quantity == "accuracy" else float("nan")
                curves[label] = seed_statistics([row[quantity] for row in some], empty=empty)
                x[label] = [(t + 1) * some[0]["test_every"] for t in range(len(curves[label][0]))]
                styles[label] = line(optimizer, 0)._replace(dashes=DASHES[name])
        draw_curves(axes, x, curves, styles)
        axes.set(title=title, xlabel="Training iteration")
    log_y(axes)
    return figure


def draw_decays(rows: list[Row], settings: Settings) -> Figure:
    """Best accuracy of each run against the activity decay; runs that were stopped at once are at chance."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    positions = range(len(settings.decays))
    curves, styles = {}, {}
    for steps, dashes in zip(settings.decay_steps, (":", "-"), strict=True):
        for optimizer in OPTIMIZERS:
            some = chosen(rows, optimizer=optimizer, inference_steps=steps)
            highest = [max(chosen(some, activity_decay=d)[0]["accuracy"], default=CHANCE) for d in settings.decays]
            label = f"{optimizer}, {steps} inference steps"
            curves[label] = (highest, np.zeros(len(highest)))
            styles[label] = line(optimizer, 0)._replace(dashes=dashes)
    draw_curves(axes, positions, curves, styles)
    axes.set_xticks(positions, [f"{decay:g}" for decay in settings.decays])
    axes.set(xlabel="Activity decay", ylabel="Best test accuracy", title="Linear network, sp, no skips")
    return figure


def summary(rows: list[Row]) -> str:
    """Test accuracy in percent after the last iteration, of every method, optimizer and rate."""
    lines = [
        f"\ntest accuracy after {rows[0]['iterations']} iterations, percent; a run that was stopped counts as chance"
    ]
    for name, network in METHODS.items():
        for optimizer in OPTIMIZERS:
            cells = []
            for rate in RATES[name]:
                some = chosen(rows, optimizer=optimizer, rate=rate, **network)
                last = [row["accuracy"][-1] if len(row["accuracy"]) else CHANCE for row in some]
                cells.append(f"lr {rate:g}: {100 * np.mean(last):.2f}±{100 * np.std(last):.2f}")
            lines.append(f"{optimizer + ', ' + name:24s}" + "  ".join(f"{cell:22s}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
