"""Curves with the spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import Line, line

Curve = tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]
"""Mean and standard deviation at every point, as `seed_statistics` returns them."""


def draw_mean_std(axes: Axes, x: Sequence[float] | np.ndarray, curve: Curve, label: str, style: Line) -> None:
    """A line with markers through the means and a band of one standard deviation; no band where that is 0."""
    mean, std = (np.asarray(values, dtype=float) for values in curve)
    # More markers than about twenty would hide the line.
    every = max(1, len(mean) // 20)
    axes.plot(x, mean, style.dashes, color=style.color, marker=style.marker, markevery=every, linewidth=2, label=label)
    if std.any():
        axes.fill_between(x, mean - std, mean + std, color=style.color, alpha=0.2, linewidth=0)


def curves(
    x: Sequence[float] | np.ndarray | Mapping[str, Sequence[float]],
    by_label: Mapping[str, Curve],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    styles: Mapping[str, Line] | None = None,
    **axes_options: Any,
) -> Figure:
    """Mean ± std curves.

    Args:
        x: positions of the points, shared or by label.
        by_label: label -> mean and standard deviation; where the latter is 0 only the line is drawn.
        styles: label -> line; default: by optimizer or position.
        axes_options: for `Axes.set`, for example yscale="log".
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    draw_curves(axes, x, by_label, styles)
    axes.set_title(title, fontsize=13)
    axes.set(xlabel=x_label, ylabel=y_label, **axes_options)
    return figure


def draw_curves(
    axes: Axes,
    x: Sequence[float] | np.ndarray | Mapping[str, Sequence[float]],
    by_label: Mapping[str, Curve],
    styles: Mapping[str, Line] | None = None,
) -> None:
    """The curves of `curves`, with grid and legend, in axes of a larger figure."""
    for position, (label, curve) in enumerate(by_label.items()):
        style = styles[label] if styles else line(label, position)
        draw_mean_std(axes, x[label] if isinstance(x, Mapping) else x, curve, label, style)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=10)
