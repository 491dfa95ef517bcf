"""Learning-rate rules: how the step length follows a matrix's shape. Pure functions of (rows, cols)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Rule = Callable[[Sequence[int]], float]


def original(shape: Sequence[int]) -> float:
    """sqrt(max(1, rows / cols)): Keller Jordan's rule, https://kellerjordan.github.io/posts/muon/."""
    rows, cols = shape[-2:]
    return math.sqrt(max(1.0, rows / cols))


def match_rms_adamw(shape: Sequence[int]) -> float:
    """0.2 sqrt(max(rows, cols)): update RMS like AdamW's, https://arxiv.org/abs/2502.16982."""
    return 0.2 * math.sqrt(max(shape[-2:]))


def spectral_unclamped(shape: Sequence[int]) -> float:
    """sqrt(rows / cols): spectral norm of fan_out / fan_in, also known as rms_to_rms, https://arxiv.org/abs/2310.17813."""
    rows, cols = shape[-2:]
    return math.sqrt(rows / cols)


def max_dim(shape: Sequence[int]) -> float:
    """sqrt(max(rows, cols)): an exact polar factor then has entries of unit RMS."""
    return math.sqrt(max(shape[-2:]))


def constant(shape: Sequence[int]) -> float:
    """1 for every shape."""
    return 1.0


RULES: dict[str, Rule] = {
    "original": original,
    "match_rms_adamw": match_rms_adamw,
    "spectral_unclamped": spectral_unclamped,
    "max_dim": max_dim,
    "constant": constant,
}


def resolve_rule(adjust_lr_fn: str | Rule | None) -> Rule:
    """The rule behind a name; None means "original", a callable shape -> float is taken as it is.

    Raises:
        ValueError: a name that is not in RULES, or something that is neither a name nor callable.
    """
    if adjust_lr_fn is None:
        return original
    if callable(adjust_lr_fn):
        return adjust_lr_fn
    if adjust_lr_fn not in RULES:
        raise ValueError(
            f"adjust_lr_fn must be None, a callable or one of {', '.join(sorted(RULES))}, got {adjust_lr_fn!r}"
        )
    return RULES[adjust_lr_fn]
