"""Colours and file formats that all figures share. Colours are told apart by colour-blind readers; so are markers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator


class Line(NamedTuple):
    """How a curve is drawn."""

    color: str
    marker: str = "o"
    dashes: str = "-"


# Okabe and Ito, https://jfly.uni-koeln.de/color/.
LINES = {
    "Muon": Line("#D55E00", "s"),
    "Adam": Line("#0072B2", "o"),
    "AdamW": Line("#0072B2", "o"),
    "SGD": Line("#009E73", "^"),
}
"""Every optimizer looks the same in every figure."""

CYCLE = (
    Line("#0072B2", "o", "-"),
    Line("#D55E00", "s", "--"),
    Line("#009E73", "^", "-."),
    Line("#CC79A7", "D", ":"),
    Line("#E69F00", "v", "-"),
    Line("#56B4E9", "P", "--"),
    Line("#000000", "X", "-."),
)

FAMILIES = {"width": "Blues", "depth": "Reds", "rate": "Oranges", "other": "viridis"}
"""Colour map of a family of curves, by what changes within it."""

FORMATS = (".png", ".pdf", ".svg")


def line(label: str, position: int) -> Line:
    """The style of an optimizer by name, of anything else by its position in the figure."""
    return LINES.get(label, CYCLE[position % len(CYCLE)])


def family_colors(count: int, family: str) -> list[tuple[float, float, float, float]]:
    """`count` colours from light to dark; the lightest part of the map, which paper swallows, is left out."""
    colormap = colormaps[FAMILIES[family]]
    low, high = (0.0, 0.85) if FAMILIES[family] == "viridis" else (0.35, 1.0)
    return [tuple(colormap(x)) for x in np.linspace(low, high, max(count, 2))][-count:]


def powers_of_two(axes: Axes, values: Sequence[int]) -> None:
    """A log2 x axis that names the given values as powers."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [f"$2^{{{v.bit_length() - 1}}}$" if v.bit_count() == 1 else str(v) for v in values])
    axes.xaxis.set_minor_locator(NullLocator())


def log_y(axes: Axes, span: float = 4.0) -> None:
    """A log y axis that covers at least a factor of `span`, so that what hardly changes looks like it."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high / low < span:
        middle = math.sqrt(low * high)
        axes.set_ylim(middle / math.sqrt(span), middle * math.sqrt(span))
    if high / low < 100:
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatted(FuncFormatter(lambda y, _: f"{y:.2g}"))


def save(figure: Figure, path: str | Path, dpi: int = 110) -> Path:
    """Writes a figure as PNG, PDF or SVG, by the path's ending; the folder is made.

    Raises:
        ValueError: another ending.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"path must end in one of {', '.join(FORMATS)}, got {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    return path
