"""What the figures of the examples share: colours, and curves of several seeds as mean and standard deviation."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers tell apart; so do the markers.
BLUE = ("#0072B2", "o")
VERMILION = ("#D55E00", "s")
GREEN = ("#009E73", "^")
PURPLE = ("#CC79A7", "D")
ORANGE = ("#E69F00", "v")
SKY = ("#56B4E9", "P")


def draw_mean(
    axes: Axes, x: Sequence[float], seeds: Sequence[Sequence[float]], style: tuple[str, str], label: str
) -> None:
    """Mean over `seeds` [seeds, points] at `x` [points], and a band of one standard deviation if there are several."""
    color, marker = style
    values = np.asarray(seeds)
    mean, spread = values.mean(0), values.std(0, ddof=min(1, len(values) - 1))
    axes.plot(x, mean, color=color, marker=marker, linewidth=2, label=label)
    if len(values) > 1:
        axes.fill_between(x, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0)
