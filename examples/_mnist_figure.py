"""The figure: one weight matrix epoch by epoch under both optimizers, with accuracies and spectral norms below."""

from pathlib import Path

import numpy as np
from _command import mean_std
from _mnist_train import History
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from muon_kernels.diagnostics.figures import draw_curves, draw_weight_grid, save

MOST_COLUMNS = 11
# Colour limits and colour-bar ticks of the weights: a planted glyph adds 0.4, a random start stays within 0.1.
SCALES = {"shape": ((-0.05, 0.45), np.linspace(-0.05, 0.45, 6)), "random": ((-0.1, 0.1), np.linspace(-0.1, 0.1, 11))}
Histories = dict[str, list[History]]  # optimizer -> one history a seed


def draw(histories: Histories, data: str, start: str, path: Path) -> None:
    """Write the figure of one start on `data`; `histories` holds each optimizer's seeds, in the order of the rows."""
    epochs = len(next(iter(histories.values()))[0].weights) - 1
    shown = np.unique(np.linspace(0, epochs, min(epochs + 1, MOST_COLUMNS)).round().astype(int))
    figure = Figure(figsize=(22, 11))
    figure.suptitle(f"{data}, MLP 784-128-128-64-10 (ReLU): the 128x128 weight, {start} start", fontsize=22, y=0.97)
    rows = figure.add_gridspec(2, 1, height_ratios=(1, 1.15), hspace=0.12)
    figure.subplots_adjust(left=0.07, right=0.935, top=0.89, bottom=0.07)
    limits, ticks = SCALES[start]
    pictures = {name: [runs[0].weights[epoch].numpy() for epoch in shown] for name, runs in histories.items()}
    titles = [f"Epoch {epoch}" if epoch else "Initial" for epoch in shown]
    draw_weight_grid(figure, rows[0], pictures, titles, limits=limits, ticks=ticks)
    curves = rows[1].subgridspec(1, 2, wspace=0.14)
    accuracy, norm = figure.add_subplot(curves[0]), figure.add_subplot(curves[1])
    accuracies = {name: np.array([run.test_accuracy for run in runs]) for name, runs in histories.items()}
    norms = {name: np.array([run.spectral_norm for run in runs]) for name, runs in histories.items()}
    for axes, by_name in ((accuracy, accuracies), (norm, norms)):
        draw_curves(axes, range(epochs + 1), {name: mean_std(values) for name, values in by_name.items()})
    everything = np.concatenate(list(accuracies.values()))
    # The untrained network would stretch the axis over 90 points and hide the two or three that the figure is about.
    trained = everything[:, 1:]
    accuracy.set_ylim(trained.min() - 0.01, min(1.0, trained.max() + 0.01))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    untrained = f"Test accuracy (untrained: {everything[:, 0].mean():.0%}, below the axis)"
    for axes, title in ((accuracy, untrained), (norm, "Spectral norm of the weight")):
        axes.set_title(title, fontsize=18)
        axes.set_xlabel("Epoch", fontsize=16)
        axes.xaxis.set_major_locator(MaxNLocator(MOST_COLUMNS, integer=True))
        axes.tick_params(labelsize=14)
        axes.legend(fontsize=16, loc="lower right" if axes is accuracy else "best")
    save(figure, path, dpi=100)
