"""Spectra as overlaid histograms: a slice through width or depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import family_colors

BINS = 50


def draw_spectrum_slice(
    axes: Axes, spectra: Mapping[str, Sequence[float] | np.ndarray], *, family: str, x_label: str
) -> None:
    """Overlaid histograms of eigenvalues or singular values, as shares of each spectrum on a log axis.

    Args:
        spectra: label (such as "H = 8") -> values; light to dark in this order. All share the same 50 bins.
        family: "width", "depth" or "other": the colours.

    Raises:
        ValueError: no values at all, or some that are not finite.
    """
    values = [np.asarray(v, dtype=float).ravel() for v in spectra.values()]
    if not values or not all(v.size for v in values):
        raise ValueError("spectra must hold values for every label")
    if not all(np.isfinite(v).all() for v in values):
        raise ValueError("spectra must be finite")
    edges = np.histogram_bin_edges(np.concatenate(values), BINS).tolist()
    for i, (label, v, color) in enumerate(zip(spectra, values, family_colors(len(values), family), strict=True)):
        # Light ones lie on top: along a family spectra widen, and the wide ones would hide the narrow.
        shares, order = np.full(v.size, 1 / v.size), 2 + len(values) - i
        axes.hist(v, edges, weights=shares, color=color, alpha=0.45, label=label, zorder=order)
        axes.hist(v, edges, weights=shares, color=color, histtype="step", linewidth=1.5, zorder=order)
    axes.set_yscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel("Density (log)")
    axes.legend(fontsize=9).set_zorder(2 + len(values) + 1)


def spectrum_slice(
    spectra: Mapping[str, Sequence[float] | np.ndarray], *, family: str, x_label: str, title: str = ""
) -> Figure:
    """`draw_spectrum_slice` as a figure of its own."""
    figure = Figure(figsize=(5.5, 4.0), layout="constrained")
    axes = figure.add_subplot()
    draw_spectrum_slice(axes, spectra, family=family, x_label=x_label)
    axes.set_title(title, fontsize=13)
    return figure
