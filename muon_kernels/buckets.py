"""What of a group runs together in a step: its matrices, by device and dtypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .matrices import Layout, ordered_like, split, step_factor
from .periodic import block_factor, layout_of_step
from .scaling import resolve_rule


class Bucket(NamedTuple):
    """Matrices of a step that run together: views of parameter, gradient and momentum, and the rule's factor for lr.

    moments: views of their second moments if the group has a normaliser, otherwise empty.
    """

    params: list[Tensor]
    grads: list[Tensor]
    momenta: list[Tensor]
    scales: list[float]
    moments: list[Tensor]

    def select(self, order: Sequence[int]) -> Bucket:
        return Bucket(
            [self.params[i] for i in order],
            [self.grads[i] for i in order],
            [self.momenta[i] for i in order],
            [self.scales[i] for i in order],
            [self.moments[i] for i in order] if self.moments else [],
        )


def build_buckets(
    group: dict[str, Any], params: list[Tensor], targets: list[Tensor], states: Mapping[Tensor, dict[str, Any]]
) -> list[Bucket]:
    """Matrices by device and by the dtypes of what is stepped, gradient and momentum.

    Args:
        params: those of the group that have a gradient.
        targets: what is stepped of each, the parameter itself or its copy of higher precision.
        states: of the parameters; what a step needs is created where it is missing.
    """
    buckets: dict[tuple[Any, ...], Bucket] = {}
    scales: dict[tuple[torch.Size, torch.Size], float] = {}  # few shapes, many parameters
    layout, normalizer = layout_of_step(group), group["normalizer"]
    for p, target in zip(params, targets, strict=True):
        grad, state = p.grad, states[p]
        assert grad is not None
        momentum = state.get("momentum_buffer")
        if momentum is None:
            state["momentum_buffer"] = momentum = torch.zeros_like(
                grad, dtype=group["momentum_dtype"], memory_format=torch.preserve_format
            )
        if layout is not None:
            grad = ordered_like(target, grad)
            state["momentum_buffer"] = momentum = ordered_like(target, momentum)
        shape = p.shape
        if 0 in shape:
            continue
        key = (p.device, target.dtype, grad.dtype, momentum.dtype)
        bucket = buckets.get(key)
        if bucket is None:
            bucket = buckets[key] = Bucket([], [], [], [], [])
        if normalizer is not None:
            bucket.moments.extend(normalizer.moments(state, target, layout))
        if (
            layout is None
        ):  # one matrix, which `split` would return: most parameters, and this runs for each in each step
            views = [target]
            bucket.params.append(target)
            bucket.grads.append(grad)
            bucket.momenta.append(momentum)
        else:
            views = split(target, layout)
            bucket.params.extend(views)
            bucket.grads.extend(split(grad, layout))
            bucket.momenta.extend(split(momentum, layout))
        for matrix in views:
            shapes = (shape, matrix.shape)
            scale = scales.get(shapes)
            if scale is None:
                scale = scales[shapes] = lr_scale(group, p, layout, matrix.shape)
            bucket.scales.append(scale)
    return list(buckets.values())


def lr_scale(group: dict[str, Any], p: Tensor, layout: Layout, shape: Sequence[int]) -> float:
    """What lr is multiplied by for a matrix of `shape` of the parameter `p` in a step with this layout."""
    return resolve_rule(group["adjust_lr_fn"])(shape) * step_factor(p.shape, layout) * block_factor(group, layout)
