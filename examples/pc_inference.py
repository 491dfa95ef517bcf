"""How should activities move? Predictive coding by gradient descent, Adam, with skips, orthogonal weights, and muPC.

See docs/pc_inference.md.
"""

from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from _experiment import Cell, Experiment, Row, chosen, start
from _mnist_read import Mnist
from _mnist_train import prepare_splits
from _pc_train import CHANCE, DEFAULTS, best, train
from matplotlib.figure import Figure

from muon_kernels.diagnostics import seed_statistics
from muon_kernels.diagnostics.figures import Line, draw_curves, family_colors

SP = {"parametrisation": "sp", "skips": False, "activity_optimizer": "gd", "rate": 1e-3}
VARIANTS = {
    "gradient descent": SP,
    "Adam": SP | {"activity_optimizer": "adam"},
    "skips": SP | {"skips": True},
    "orthogonal": SP | {"parametrisation": "orthogonal"},
    "muPC": SP | {"parametrisation": "mupc", "skips": True, "rate": 0.03},
}
QUANTITIES = {"accuracy": "test accuracy", "condition": r"$\kappa(H_z)$"}


@dataclass(frozen=True)
class Settings:
    """How large the experiment is."""

    activations: tuple[str, ...] = ("tanh", "relu")
    width: int = 32
    depths: tuple[int, ...] = (2, 4, 8)
    activity_rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    inference_steps: int = 20
    iterations: int = 40
    test_every: int = 10
    seeds: int = 1


FULL = Settings(("linear", "tanh", "relu"), 128, (4, 8, 16), inference_steps=32, iterations=200, test_every=25)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    experiment, data = start("pc_inference", __doc__.splitlines()[0], arguments)
    run(experiment, FULL if experiment.full else Settings(), data)


def run(experiment: Experiment, settings: Settings, data: Mnist) -> None:
    """All measurements, then the figure."""
    splits = prepare_splits(data, experiment.device, torch.float32)
    cells: list[Cell] = [
        DEFAULTS
        | variant
        | {"optimizer": "Muon", "activation": activation, "width": settings.width, "hidden": h, "seed": seed}
        | {"activity_rate": activity_rate, "inference_steps": settings.inference_steps, "conditions": True}
        | {"iterations": settings.iterations, "test_every": settings.test_every}
        for variant, activation, h, activity_rate, seed in product(
            VARIANTS.values(), settings.activations, settings.depths, settings.activity_rates, range(settings.seeds)
        )
    ]
    rows = experiment.measure(cells, partial(train, splits=splits), "inference")
    experiment.save({"methods": draw(rows, settings)}, dpi=72)


def draw(rows: list[Row], settings: Settings) -> Figure:
    """Accuracy and condition number over training at the best activity rate: a column a variant, a curve a depth."""
    panels = list(product(settings.activations, QUANTITIES))
    figure = Figure(figsize=(2.7 * len(VARIANTS), 2.2 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), len(VARIANTS), squeeze=False, sharex=True, sharey="row")
    colors = family_colors(len(settings.depths), "width")
    for line_of_axes, (activation, quantity) in zip(grid, panels, strict=True):
        for axes, variant in zip(line_of_axes, VARIANTS.values(), strict=True):
            curves, x, styles = {}, {}, {}
            for hidden, color in zip(settings.depths, colors, strict=True):
                some = best(chosen(rows, activation=activation, hidden=hidden, **variant), "activity_rate")
                label = rf"$H={hidden}$, $\eta={some[0]['activity_rate']:g}$"
                empty = CHANCE if quantity == "accuracy" else float("nan")
                curves[label] = seed_statistics([row[quantity] for row in some], empty=empty)
                x[label] = [(t + 1) * settings.test_every for t in range(len(curves[label][0]))]
                styles[label] = Line(color, ".")
            draw_curves(axes, x, curves, styles)
            if quantity == "condition":
                axes.set_yscale("log")
                axes.get_legend().remove()  # the curves are those of the panel above
            else:
                axes.set_ylim(0, 1)
                axes.legend(fontsize=9, handlelength=1, framealpha=0.5)
        line_of_axes[0].set_ylabel(f"{activation}: {QUANTITIES[quantity]}")
    for axes, name in zip(grid[0], VARIANTS, strict=True):
        axes.set_title(name)
    for axes in grid[-1]:
        axes.set_xlabel("Training iteration")
    return figure


if __name__ == "__main__":
    main()
