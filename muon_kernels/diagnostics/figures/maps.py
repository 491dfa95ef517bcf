"""Maps over two settings: phases over width and depth, contours over two learning rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

Table = Sequence[Sequence[float]] | np.ndarray


def phase_map(table: Table, widths: Sequence[int], depths: Sequence[int], *, label: str, **options: Any) -> Figure:
    """`draw_phase_map` as a figure of its own."""
    figure = Figure(figsize=(1.6 + 0.72 * max(4, len(depths)), 1.2 + 0.6 * max(4, len(widths))), layout="constrained")
    draw_phase_map(figure.add_subplot(), table, widths, depths, label=label, **options)
    return figure


def draw_phase_map(
    axes: Axes,
    table: Table,
    widths: Sequence[int],
    depths: Sequence[int],
    *,
    label: str,
    title: str = "",
    log: bool = True,
    limits: tuple[float, float] | None = None,
) -> None:
    """A quantity over width (up) and depth (right), one cell a measurement, in the colours of inferno.

    Args:
        table: [widths, depths]; what is not finite, or not positive with `log`, stays grey.
        label: beside the colour bar.
        log: logarithmic colours.
        limits: of the colours; default: those of the table.

    Raises:
        ValueError: the table does not have the shape that widths and depths say.
    """
    values = np.asarray(table, dtype=float)
    if values.shape != (len(widths), len(depths)):
        raise ValueError(f"table must be [{len(widths)}, {len(depths)}], got {list(values.shape)}")
    shown = np.ma.masked_invalid(values)
    shown = np.ma.masked_less_equal(shown, 0) if log else shown
    low, high = limits or (shown.min(), shown.max())
    colormap = colormaps["inferno"].with_extremes(bad="0.8")
    norm = LogNorm(low, high) if log else Normalize(low, high)
    image = axes.imshow(shown, origin="lower", cmap=colormap, norm=norm, interpolation="nearest", aspect="auto")
    axes.set_xticks(range(len(depths)), [str(d) for d in depths])
    axes.set_yticks(range(len(widths)), [str(w) for w in widths])
    axes.set_xlabel("Depth H", fontsize=12)
    axes.set_ylabel("Width N", fontsize=12)
    axes.set_title(title, fontsize=13)
    axes.figure.colorbar(image, ax=axes, label=label)
    for (row, column), value in np.ma.ndenumerate(shown):
        dark = norm(value) < 0.6
        axes.text(column, row, _short(value), ha="center", va="center", color="w" if dark else "k", fontsize=9)


def draw_rate_contour(
    axes: Axes,
    table: Table,
    x: Sequence[float],
    y: Sequence[float],
    *,
    label: str,
    colormap: str = "RdBu_r",
) -> None:
    """Filled contours of a positive quantity over two learning rates, all in logarithms; the best cell has a star.

    Args:
        table: [y, x]; the star is at its smallest finite value. What is not finite (diverged) stays grey.
        x, y: the learning rates (or widths) of the columns and rows, at least two each.
        colormap: "RdBu_r" for losses.

    Raises:
        ValueError: shapes that do not fit, or nothing positive and finite.
    """
    values = np.asarray(table, dtype=float)
    if values.shape != (len(y), len(x)) or min(values.shape) < 2:
        raise ValueError(f"table must be [{len(y)}, {len(x)}], at least 2 x 2, got {list(values.shape)}")
    known = np.isfinite(values) & (values > 0)
    if not known.any():
        raise ValueError("table must hold a positive finite value")
    logs = np.ma.masked_where(~known, np.log10(np.where(known, values, 1.0)))
    low, high = float(logs.min()), float(logs.max())
    axes.set_facecolor("0.8")
    filled = axes.contourf(x, y, logs, levels=np.linspace(low, max(high, low + 1e-6), 25), cmap=colormap)
    axes.set(xscale="log", yscale="log")
    for axis, rates in ((axes.xaxis, x), (axes.yaxis, y)):
        axis.set_ticks(rates, [f"{rate:g}" for rate in rates])
        axis.set_minor_locator(NullLocator())
    bar = axes.figure.colorbar(filled, ax=axes, label=label)
    ticks = np.linspace(low, max(high, low + 1e-6), 6)
    bar.set_ticks(ticks.tolist(), labels=[_short(10**t) for t in ticks])
    row, column = np.unravel_index(np.argmin(np.where(known, values, math.inf)), values.shape)
    axes.plot(x[int(column)], y[int(row)], "*", color="w", markeredgecolor="k", markersize=16, clip_on=False, zorder=3)


def _short(value: float) -> str:
    """Three digits, however large."""
    return f"{value:.3g}" if 0.01 <= abs(value) < 1000 else f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
