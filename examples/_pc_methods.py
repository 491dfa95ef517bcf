"""The methods that train a `PCNetwork`, compared: cells with every optimizer and rate, the figure, the accuracies."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from _experiment import Cell, Row, chosen
from _pc_train import CHANCE, DEFAULTS, OPTIMIZERS, best, reached
from matplotlib.figure import Figure

from muon_kernels.diagnostics import seed_statistics
from muon_kernels.diagnostics.figures import draw_curves, line, log_y

METHODS = {
    "muPC": {"method": "pc", "parametrisation": "mupc", "skips": True},
    "PC": {"method": "pc", "parametrisation": "sp", "skips": True},
    "backpropagation": {"method": "bp", "parametrisation": "mupc", "skips": True},
}
DASHES = {"muPC": "-", "PC": ":", "backpropagation": "--"}


def training_cells(common: Cell, rates: Mapping[str, Sequence[float]], seeds: int) -> list[Cell]:
    """Every method of `rates` with each optimizer, each of the method's weight learning rates and each seed."""
    return [
        DEFAULTS | common | {"part": "training", "optimizer": o, "rate": rate, "seed": seed} | METHODS[name]
        for name in rates
        for o in OPTIMIZERS
        for rate in rates[name]
        for seed in range(seeds)
    ]


def by_method(rows: list[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """Method, optimizer and their rows, of all that are among these."""
    for name, settings in METHODS.items():
        for optimizer in OPTIMIZERS:
            if some := chosen(rows, optimizer=optimizer, **settings):
                yield name, optimizer, some


def draw_training(rows: list[Row]) -> Figure:
    """Accuracy and loss over iterations of each method and optimizer at its best rate: mean and deviation of seeds."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    panels = {"accuracy": "Test accuracy", "loss": "Training loss, feed-forward pass"}
    for axes, (quantity, title) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        curves, x, styles = {}, {}, {}
        for name, optimizer, some in by_method(rows):
            shown = best(some, "rate")
            label = f"{optimizer}, {name}, lr {shown[0]['rate']:g}"
            empty = CHANCE if quantity == "accuracy" else float("nan")
            curves[label] = seed_statistics([row[quantity] for row in shown], empty=empty)
            x[label] = [(t + 1) * shown[0]["test_every"] for t in range(len(curves[label][0]))]
            styles[label] = line(optimizer, 0)._replace(dashes=DASHES[name])
        draw_curves(axes, x, curves, styles)
        axes.legend(fontsize=10, handlelength=3.5)  # long enough for dashes beside the marker
        axes.set(title=title, xlabel="Training iteration")
    log_y(axes)
    return figure


def summary(rows: list[Row]) -> str:
    """Test accuracy in percent after the last iteration, of every method, optimizer and rate."""
    lines = [
        f"\ntest accuracy after {rows[0]['iterations']} iterations, percent; a run that was stopped counts as chance"
    ]
    for name, optimizer, some in by_method(rows):
        cells = []
        for rate in dict.fromkeys(row["rate"] for row in some):
            last = [reached(row) for row in chosen(some, rate=rate)]
            cells.append(f"lr {rate:g}: {100 * np.mean(last):.2f}±{100 * np.std(last):.2f}")
        lines.append(f"{optimizer + ', ' + name:24s}" + "  ".join(f"{cell:22s}" for cell in cells))
    return "\n".join(lines)
