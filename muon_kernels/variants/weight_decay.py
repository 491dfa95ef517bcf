"""Rules of weight decay.

"decoupled": p <- (1 - lr weight_decay) p - lr scale u, which `ops.apply` does itself.

"cautious": the decay acts only on elements where it and the update pull p the same way, u p >= 0; elsewhere it would
work against the loss. https://arxiv.org/abs/2510.12402
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

WeightDecayRule = Literal["decoupled", "cautious"]


def check_rule(rule: Any) -> None:
    """Raises ValueError for what is no name of a rule."""
    if rule not in get_args(WeightDecayRule):
        raise ValueError(f"weight_decay_rule must be one of {', '.join(get_args(WeightDecayRule))}, got {rule!r}")


def with_cautious_decay(
    batches: Sequence[Tensor], params: Sequence[Tensor], scales: Sequence[float], weight_decay: float
) -> list[Tensor]:
    """scale u + weight_decay p where u p >= 0: what lr times is the whole step of "cautious".

    Args:
        batches: problem list [count, rows, cols] of updates u; not written.
        params, scales: of every matrix of `batches`, in their order; all parameters of one dtype.
        weight_decay: its factor, without lr.

    Returns:
        A matrix like each of `params` in shape, in float32, or in float64 if the parameters are.
    """
    dtype = torch.promote_types(params[0].dtype, torch.float32)
    steps: list[Tensor] = []
    for batch in batches:
        first, last = len(steps), len(steps) + len(batch)
        p = torch.stack(list(params[first:last])).to(dtype)
        u = batch.to(dtype, copy=True)
        decay = torch.where(u * p >= 0, p, 0).mul_(weight_decay)
        matrices = list(u.unbind(0))
        torch._foreach_mul_(matrices, list(scales[first:last]))
        u.add_(decay)
        steps.extend(matrices)
    return steps
