"""Curves over random seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def seed_statistics(curves: Sequence[Sequence[float]], *, empty: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (ddof 0) over seeds at every point that all seeds reached.

    Every curve is cut to the length of the shortest, so a run that stopped early shortens the statistics. The rules are
    those of the muPC paper's code, https://github.com/thebuckleylab/jpc.

    Args:
        curves: one a seed.
        empty: what stands for a curve without points, one value long: chance level for accuracies.

    Returns:
        float64 [points] each.

    Raises:
        ValueError: no curve at all, or one without points and no `empty`.
    """
    if not curves:
        raise ValueError("curves must hold at least one seed, got none")
    if empty is not None:
        curves = [curve if len(curve) else [empty] for curve in curves]
    length = min(map(len, curves))
    if length == 0:
        raise ValueError("curves must hold at least one point each; say with empty= what stands for none")
    table = np.array([curve[:length] for curve in curves], dtype=np.float64)
    return table.mean(0), table.std(0)


def learned_nothing(loss: float, accuracy: float, floor: float = 0.15) -> bool:
    """Whether a run may stop early: its loss is not finite, or its accuracy (0 to 1) is below `floor`."""
    return not math.isfinite(loss) or accuracy < floor
