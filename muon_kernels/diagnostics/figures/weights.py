"""One weight matrix over training: a row of pictures an optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec


def draw_weight_grid(
    figure: Figure,
    place: SubplotSpec,
    rows: Mapping[str, Sequence[np.ndarray]],
    titles: Sequence[str],
    *,
    limits: tuple[float, float],
    ticks: Sequence[float] | np.ndarray,
) -> None:
    """Draws matrices side by side in one colour scale, with a colour bar at the right.

    Args:
        place: of the grid in the figure.
        rows: label -> matrices, one for each of `titles`.
        limits: of the colours.
        ticks: of the colour bar.

    Raises:
        ValueError: a row with more or fewer matrices than titles.
    """
    for label, matrices in rows.items():
        if len(matrices) != len(titles):
            raise ValueError(f"rows must hold {len(titles)} matrices each, got {len(matrices)} for {label!r}")
    cells = place.subgridspec(len(rows), len(titles), wspace=0.05, hspace=0.05)
    grid = cells.subplots(squeeze=False)
    for line, (label, matrices) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(label, fontsize=22, rotation=0, ha="right", va="center", labelpad=12)
        for axes, matrix in zip(line, matrices, strict=True):
            image = axes.imshow(matrix, vmin=limits[0], vmax=limits[1], interpolation="nearest")
            axes.set(xticks=[], yticks=[])
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=16)
    top, bottom = grid[0][-1].get_position(), grid[-1][-1].get_position()
    bar = figure.add_axes((top.x1 + 0.0075, bottom.y0, 0.0075, top.y1 - bottom.y0))
    figure.colorbar(image, cax=bar, ticks=ticks, format="%.2f").ax.tick_params(labelsize=14)
