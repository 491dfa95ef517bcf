"""Figures of the diagnostics, with matplotlib (extra `muon_kernels[plots]`).

Functions named draw_* draw into axes or a place that they are given; the others return a figure, and `save` writes it.
"""

from .curves import Curve, curves, draw_curves, draw_mean_std
from .histograms import draw_spectrum_slice, spectrum_slice
from .maps import draw_phase_map, draw_rate_contour, phase_map
from .structures import projections, random_symmetric, save_structure_animation, structure_gallery
from .style import CYCLE, LINES, Line, family_colors, line, log_y, powers_of_two, save
from .weights import draw_weight_grid

__all__ = [
    "CYCLE",
    "LINES",
    "Curve",
    "Line",
    "curves",
    "draw_curves",
    "draw_mean_std",
    "draw_phase_map",
    "draw_rate_contour",
    "draw_spectrum_slice",
    "draw_weight_grid",
    "family_colors",
    "line",
    "log_y",
    "phase_map",
    "powers_of_two",
    "projections",
    "random_symmetric",
    "save",
    "save_structure_animation",
    "spectrum_slice",
    "structure_gallery",
]
