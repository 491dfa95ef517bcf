"""Block-periodic steps: the blocks of a layout by themselves, the whole matrix once a period.

Blocks are cheaper to orthogonalise, and where each lies on a device of its own nothing is sent, but their steps drift
from the whole matrix's. MuonBP, https://arxiv.org/abs/2510.16981, corrects that in every P-th step, the first one among
them, and gives both kinds their own learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .matrices import Layout, is_whole

POSITION = "step_of_period"
"""Where a group counts: 0 before the step of the whole matrix. The host counts, also steps that GradScaler skips; a
CUDA graph repeats the kind of step that it captured."""


def check_period(options: Mapping[str, Any]) -> None:
    """Raises TypeError or ValueError for a period, or a factor, that is out of its range or does not fit the group."""
    period, factor = options["period"], options["block_lr_scale"]
    if not 0.0 < factor < math.inf:
        raise ValueError(f"block_lr_scale must be > 0 and finite, got {factor}")
    if period is None:
        if factor != 1.0:
            raise ValueError(f"block_lr_scale must be 1.0 without a period, got {factor}")
        return
    if not isinstance(period, int) or isinstance(period, bool):
        raise TypeError(f"period must be None or an integer, got {period!r}")
    if period < 1:
        raise ValueError(f"period must be >= 1, got {period}")
    if is_whole(options["layout"]):
        raise ValueError(f"period needs a layout that cuts a 2-D parameter into blocks, got {options['layout']!r}")
    for name, plain in (("normalizer", None), ("momentum_store", None), ("rounding", "nearest")):
        if options[name] != plain:  # their state follows the layout
            raise ValueError(f"{name} must be {plain!r} with a period, got {options[name]!r}")


def layout_of_step(group: Mapping[str, Any]) -> Layout:
    """The layout of the coming step: the group's, or None for the whole matrix."""
    return None if group["period"] and group.get(POSITION, 0) == 0 else group["layout"]


def steps_shards(group: Mapping[str, Any]) -> bool:
    """Whether the coming step takes what this rank holds of a parameter as it is, without the other ranks."""
    return group["use_muon"] and layout_of_step(group) == "shards"


def block_factor(group: Mapping[str, Any], layout: Layout) -> float:
    """What lr is multiplied by in a step with this layout."""
    return 1.0 if layout is None else group["block_lr_scale"]


def advance(group: dict[str, Any]) -> None:
    """Counts a step."""
    if group["period"]:
        group[POSITION] = (group.get(POSITION, 0) + 1) % group["period"]
