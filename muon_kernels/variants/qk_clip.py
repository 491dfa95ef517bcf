"""QK-clip: attention logits kept below a bound by the weights that make them. Kimi K2, https://arxiv.org/abs/2507.20534.

A head whose largest logit S of the last forward passes exceeds tau gets both W_q and W_k times sqrt(tau / S), so that
its logits are tau / S times what they were. The other heads stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class QKClip:
    """A hook of one attention: `optimizer.register_step_post_hook(clip)` clips after every step.

    The model calls `observe` in its forward pass. Separate projections are given as they are, a fused one as views:

        query, key, _ = attention.qkv.weight.detach().chunk(3)
        clip = QKClip([query], [key], heads=12)

    Nothing waits for the device. Views belong to the storage that the parameter has now: move the model first. In data
    parallel training, `observe` must be given the maximum over all ranks.

    Args:
        query, key: weights [heads * dim, in] and, where there are any, biases [heads * dim]; written in place. As many
            key heads as query heads.
        heads: number of heads, in the order of the rows.
        tau: bound on a logit, as the softmax sees it, > 0 and finite (100.0, the paper's).

    Raises:
        TypeError: a DTensor.
        ValueError: rows that `heads` does not divide, unequal rows of query and key (grouped queries), an empty list,
            `heads` or `tau` out of range.
    """

    def __init__(self, query: Sequence[Tensor], key: Sequence[Tensor], *, heads: int, tau: float = 100.0) -> None:
        if heads < 1:
            raise ValueError(f"heads must be >= 1, got {heads}")
        if not 0.0 < tau < math.inf:
            raise ValueError(f"tau must be > 0 and finite, got {tau}")
        for name, tensors in (("query", query), ("key", key)):
            if not tensors:
                raise ValueError(f"{name} must hold at least one tensor, got none")
            for tensor in tensors:
                if hasattr(tensor, "placements"):
                    raise TypeError(f"{name} must hold plain tensors, got a DTensor of shape {list(tensor.shape)}")
                if tensor.ndim not in (1, 2) or tensor.shape[0] % heads:
                    raise ValueError(
                        f"{name} must hold [heads * dim, ...] with {heads} heads, got shape {list(tensor.shape)}"
                    )
        sides = [{tensor.shape[0] for tensor in tensors} for tensors in (query, key)]
        if len(sides[0] | sides[1]) != 1:  # a key that several query heads share belongs to none of them
            raise ValueError(
                f"query and key must have equally many rows, got {sorted(sides[0])} and {sorted(sides[1])}"
            )
        self._tensors = [*query, *key]
        self._heads = heads
        self._tau = tau
        self._largest: Tensor | None = None

    @torch.no_grad()
    def observe(self, max_logits: Tensor) -> None:
        """Notes the largest logit of every head; of several calls before a step the larger ones count.

        Args:
            max_logits: [heads], after the scale 1 / sqrt(dim). ValueError for another shape.
        """
        if max_logits.shape != (self._heads,):
            raise ValueError(f"max_logits must have shape [{self._heads}], got {list(max_logits.shape)}")
        found = max_logits.detach().float()
        self._largest = found.clone() if self._largest is None else torch.maximum(self._largest, found)

    @torch.no_grad()
    def __call__(self, *_: Any) -> None:
        """Clips by what was observed since the last call, which is then forgotten. A logit that is not finite clips
        nothing."""
        if self._largest is None:
            return
        clipped = (self._largest > self._tau) & self._largest.isfinite()
        factors = torch.where(clipped, self._tau / self._largest, 1.0).sqrt()
        for tensor in self._tensors:
            rows = factors.repeat_interleave(tensor.shape[0] // self._heads).to(tensor.device)
            tensor.mul_(rows.to(tensor.dtype) if tensor.ndim == 1 else rows.to(tensor.dtype)[:, None])
        self._largest = None
