"""Do the learning rates of predictive coding, of weights and of activities, transfer over width and depth under muPC?

See docs/pc_transfer.md.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from _experiment import Cell, Experiment, Row, chosen, start
from _mnist_read import Mnist
from _mnist_train import prepare_splits
from _pc_train import CHANCE, DEFAULTS, OPTIMIZERS, best, train
from matplotlib.figure import Figure

from muon_kernels.diagnostics import seed_statistics
from muon_kernels.diagnostics.figures import Line, draw_curves, draw_rate_contour, family_colors

RATES = ("rate", "activity_rate")


@dataclass(frozen=True)
class Settings:
    """How large the experiment is: over width at one depth, over depth at one width."""

    widths: tuple[int, ...] = (32, 64, 128)
    hidden: int = 4
    depths: tuple[int, ...] = (2, 4, 8)
    width: int = 64
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    activity_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    iterations: int = 30
    test_every: int = 5
    seeds: int = 1


FULL = Settings((64, 128, 256, 512), 8, (4, 8, 16), 256, iterations=200, test_every=20, seeds=2)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    experiment, data = start("pc_transfer", __doc__.splitlines()[0], arguments)
    run(experiment, FULL if experiment.full else Settings(), data)


def run(experiment: Experiment, settings: Settings, data: Mnist) -> None:
    """All measurements, then all figures."""
    splits = prepare_splits(data, experiment.device, torch.float32)
    sizes = [(w, settings.hidden) for w in settings.widths] + [(settings.width, h) for h in settings.depths]
    cells: list[Cell] = [
        DEFAULTS
        | {"parametrisation": "mupc", "skips": True, "activation": "tanh", "optimizer": o, "width": w, "hidden": h}
        | {"rate": rate, "activity_rate": activity_rate, "inference_steps": h, "seed": seed}
        | {"iterations": settings.iterations, "test_every": settings.test_every}
        for o, (w, h), rate, activity_rate, seed in product(
            OPTIMIZERS, dict.fromkeys(sizes), settings.rates, settings.activity_rates, range(settings.seeds)
        )
    ]
    rows = experiment.measure(cells, partial(train, splits=splits), "rates")
    over_width = chosen(rows, hidden=settings.hidden)
    over_depth = chosen(rows, width=settings.width)
    figures = {
        "width": draw_contours(over_width, settings, "width", settings.widths),
        "depth": draw_contours(over_depth, settings, "hidden", settings.depths),
        "accuracy": draw_accuracies(over_width, over_depth, settings),
    }
    experiment.save(figures, dpi=80)
    print(summary(over_width, "width", settings.widths) + summary(over_depth, "hidden", settings.depths))


def lowest_loss(rows: list[Row]) -> float:
    """The lowest training loss that was recorded, mean over seeds; NaN if a seed diverged before the first record."""
    return float(np.mean([min(row["loss"], default=math.nan) for row in rows]))


def draw_contours(rows: list[Row], settings: Settings, size: str, values: tuple[int, ...]) -> Figure:
    """Lowest training loss over both learning rates, a column a size, a row an optimizer; a star marks the best."""
    figure = Figure(figsize=(3.2 * len(values), 2.9 * len(OPTIMIZERS)), layout="constrained")
    grid = figure.subplots(len(OPTIMIZERS), len(values), squeeze=False, sharex=True, sharey=True)
    for line_of_axes, optimizer in zip(grid, OPTIMIZERS, strict=True):
        for axes, value in zip(line_of_axes, values, strict=True):
            some = chosen(rows, optimizer=optimizer, **{size: value})
            table = [
                [lowest_loss(chosen(some, rate=r, activity_rate=a)) for r in settings.rates]
                for a in settings.activity_rates
            ]
            draw_rate_contour(axes, table, settings.rates, settings.activity_rates, label="")
            letter = "N" if size == "width" else "H"
            axes.set_title(f"{optimizer}, ${letter}={value}$", pad=12)
        line_of_axes[0].set_ylabel("Activity learning rate")
    for axes in grid[-1]:
        axes.set_xlabel("Weight learning rate")
    figure.suptitle("Lowest training loss")
    return figure


def draw_accuracies(over_width: list[Row], over_depth: list[Row], settings: Settings) -> Figure:
    """Test accuracy over training at the best pair of rates, over width (red) and over depth (blue)."""
    figure = Figure(figsize=(11, 3.9 * len(OPTIMIZERS)), layout="constrained")
    grid = figure.subplots(len(OPTIMIZERS), 2, squeeze=False, sharey=True)
    families = (
        ("width", over_width, settings.widths, "N", "depth", f"H = {settings.hidden}"),
        ("hidden", over_depth, settings.depths, "H", "width", f"N = {settings.width}"),
    )
    for line_of_axes, optimizer in zip(grid, OPTIMIZERS, strict=True):
        for axes, (size, rows, values, letter, family, fixed) in zip(line_of_axes, families, strict=True):
            curves, x, styles = {}, {}, {}
            for value, color in zip(values, family_colors(len(values), family), strict=True):
                some = best(chosen(rows, optimizer=optimizer, **{size: value}), *RATES)
                label = f"${letter}={value}$, lr {some[0]['rate']:g}, {some[0]['activity_rate']:g}"
                curves[label] = seed_statistics([row["accuracy"] for row in some], empty=CHANCE)
                x[label] = [(t + 1) * settings.test_every for t in range(len(curves[label][0]))]
                styles[label] = Line(color)
            draw_curves(axes, x, curves, styles)
            axes.set(title=f"{optimizer}, {fixed}", xlabel="Training iteration", ylabel="Test accuracy")
    return figure


def summary(rows: list[Row], size: str, values: tuple[int, ...]) -> str:
    """The pair of rates with the lowest loss at every size."""
    lines = [f"\nweight and activity rate of the lowest training loss, by {size}"]
    for optimizer in OPTIMIZERS:
        cells = []
        for value in values:
            some = chosen(rows, optimizer=optimizer, **{size: value})
            losses = {
                pair: lowest_loss(chosen(some, rate=pair[0], activity_rate=pair[1]))
                for pair in dict.fromkeys((row["rate"], row["activity_rate"]) for row in some)
            }
            known = {pair: loss for pair, loss in losses.items() if math.isfinite(loss)}
            pair = min(known, key=known.__getitem__)
            cells.append(f"{value}: {pair[0]:g}, {pair[1]:g} ({known[pair]:.3f})")
        lines.append(f"{optimizer:8s}" + "  ".join(f"{cell:26s}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
