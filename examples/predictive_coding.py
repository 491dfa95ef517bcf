"""Predictive coding beside backpropagation, weights stepped by Muon or Adam: accuracies over training, activity decay.

See docs/predictive_coding.md.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from _experiment import Experiment, Row, chosen, start
from _mnist_read import Mnist
from _mnist_train import prepare_splits
from _pc_methods import draw_training, summary, training_cells
from _pc_train import CHANCE, DEFAULTS, OPTIMIZERS, train
from matplotlib.figure import Figure

from muon_kernels.diagnostics.figures import draw_curves, line

RATES = {"muPC": (0.01, 0.03, 0.1, 0.3), "PC": (3e-4, 1e-3, 3e-3, 0.01), "backpropagation": (0.01, 0.03, 0.1, 0.3)}


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
    cells = training_cells(
        common | {"activation": "tanh", "iterations": settings.iterations, "inference_steps": settings.hidden},
        RATES,
        settings.seeds,
    )
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


if __name__ == "__main__":
    main()
