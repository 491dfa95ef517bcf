"""How many singular directions a step keeps."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


def decide_rank(
    loss: float | Tensor, max_loss: float | Tensor | None = None, max_rank: int = 8, min_rank: int = 1
) -> int:
    """max_rank * loss / max_loss, cut to an integer in [min_rank, max_rank]: many directions while the loss is high.

    Args:
        loss: of this step, a number or a one-element tensor (which is read: on a device that waits for it). `max_rank`
            if it is not finite, `min_rank` if it is zero or negative.
        max_loss: the loss at which the rank is `max_rank`; None or 0 stands for `loss` itself.

    Raises:
        ValueError: an argument out of its range, by name and value.
    """
    check_ranks(max_rank, min_rank)
    value, reference = read_loss("loss", loss), None if max_loss is None else read_loss("max_loss", max_loss)
    check_max_loss(reference)
    if not math.isfinite(value):
        return max_rank
    if value <= 0.0:
        return min_rank
    return max(min_rank, int(min(value / (reference or value), 1.0) * max_rank))


def read_loss(name: str, loss: float | Tensor) -> float:
    """The number in `loss`; ValueError if it is a tensor of several."""
    if not isinstance(loss, Tensor):
        return float(loss)
    if loss.numel() != 1:
        raise ValueError(f"{name} must be a number or a one-element tensor, got shape {list(loss.shape)}")
    return float(loss.item())


def check_max_loss(max_loss: float | None) -> None:
    """Raises ValueError for what no largest loss can be."""
    if max_loss is not None and not 0.0 <= max_loss < math.inf:
        raise ValueError(f"max_loss must be None or finite and >= 0, got {max_loss}")


def check_ranks(max_rank: Any, min_rank: Any) -> None:
    """Raises ValueError unless 1 <= min_rank <= max_rank, both integers."""
    for name, value in (("min_rank", min_rank), ("max_rank", max_rank)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
    if min_rank > max_rank:
        raise ValueError(f"min_rank must not be above max_rank, got {min_rank} and {max_rank}")
