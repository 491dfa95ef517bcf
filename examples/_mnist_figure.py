"""The figure: one weight matrix epoch by epoch under both optimizers, with accuracies and spectral norms below."""

from pathlib import Path

import numpy as np
from _curves import BLUE, VERMILION, draw_mean
from _mnist_train import History
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import MaxNLocator, PercentFormatter

MOST_COLUMNS = 11
# Colour limits and colour-bar ticks of the weights: a planted glyph adds 0.4, a random start stays within 0.1.
SCALES = {"shape": ((-0.05, 0.45), np.linspace(-0.05, 0.45, 6)), "random": ((-0.1, 0.1), np.linspace(-0.1, 0.1, 11))}
STYLES = {"Adam": BLUE, "Muon": VERMILION}
Histories = dict[str, list[History]]  # optimizer -> one history a seed


def draw(histories: Histories, start: str, path: Path) -> None:
    """Write the figure of one start; `histories` holds each optimizer's seeds, in the order of the rows."""
    epochs = len(next(iter(histories.values()))[0].weights) - 1
    shown = np.unique(np.linspace(0, epochs, min(epochs + 1, MOST_COLUMNS)).round().astype(int))
    figure = Figure(figsize=(22, 11))
    figure.suptitle(f"MNIST, MLP 784-128-128-64-10 (ReLU): the 128x128 weight, {start} start", fontsize=22, y=0.97)
    rows = figure.add_gridspec(2, 1, height_ratios=(1, 1.15), hspace=0.12)
    figure.subplots_adjust(left=0.07, right=0.935, top=0.89, bottom=0.07)
    _draw_weights(figure, rows[0], histories, shown, start)
    curves = rows[1].subgridspec(1, 2, wspace=0.14)
    accuracy, norm = figure.add_subplot(curves[0]), figure.add_subplot(curves[1])
    for name, runs in histories.items():
        draw_mean(accuracy, range(epochs + 1), [run.test_accuracy for run in runs], STYLES[name], name)
        draw_mean(norm, range(epochs + 1), [run.spectral_norm for run in runs], STYLES[name], name)
    everything = np.array([run.test_accuracy for runs in histories.values() for run in runs])
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
        axes.grid(alpha=0.3)
        axes.legend(fontsize=16, loc="lower right" if axes is accuracy else "best")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _draw_weights(figure: Figure, place: SubplotSpec, histories: Histories, shown: np.ndarray, start: str) -> None:
    (low, high), ticks = SCALES[start]
    cells = place.subgridspec(len(histories), len(shown), wspace=0.05, hspace=0.05)
    grid = cells.subplots(squeeze=False)
    for line, (name, runs) in zip(grid, histories.items(), strict=True):
        line[0].set_ylabel(name, fontsize=22, rotation=0, ha="right", va="center", labelpad=12)
        for axes, epoch in zip(line, shown, strict=True):
            image = axes.imshow(runs[0].weights[epoch].numpy(), vmin=low, vmax=high, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
    for axes, epoch in zip(grid[0], shown, strict=True):
        axes.set_title(f"Epoch {epoch}" if epoch else "Initial", fontsize=16)
    top, bottom = grid[0][-1].get_position(), grid[-1][-1].get_position()
    bar = figure.add_axes((top.x1 + 0.0075, bottom.y0, 0.0075, top.y1 - bottom.y0))
    figure.colorbar(image, cax=bar, ticks=ticks, format="%.2f").ax.tick_params(labelsize=14)
