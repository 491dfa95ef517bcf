"""What of a group runs together in a step: its matrices, by device and dtypes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .distributed.dtensors import local
from .matrices import Layout, ordered_like, split, step_factor
from .periodic import block_factor, layout_of_step
from .scaling import resolve_rule
from .variants.rounding import SCRATCH_BYTES, rounding_keys, stochastically_rounded


class Bucket(NamedTuple):
    """Matrices of a step that run together: views of parameter, gradient and momentum, and the rule's factor for lr.

    moments: views of their second moments if the group has a normaliser, otherwise empty.
    absmax: views of their momenta's block maxima if the group has a momentum store (`momenta` are codes then),
        otherwise empty.
    keys: views of their keys if the group's rounding is stochastic, otherwise empty.
    """

    params: list[Tensor]
    grads: list[Tensor]
    momenta: list[Tensor]
    scales: list[float]
    moments: list[Tensor]
    absmax: list[Tensor]
    keys: list[Tensor]

    def select(self, order: Sequence[int]) -> Bucket:
        return Bucket._make([values[i] for i in order] if values else [] for values in self)


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
    layout, normalizer, store = layout_of_step(group), group["normalizer"], group["momentum_store"]
    shards = layout == "shards"
    cut = None if shards else layout
    for p, target in zip(params, targets, strict=True):
        grad, state = p.grad, states[p]
        assert grad is not None
        absmax: list[Tensor] = []
        if store is None:
            momentum = state.get("momentum_buffer")
            if momentum is None:
                state["momentum_buffer"] = momentum = _new_momentum(group, p, state)
            if cut is not None:
                state["momentum_buffer"] = momentum = ordered_like(target, momentum)
        else:
            momentum, absmax = store.stored(state, target, cut)
        if shards:
            target, grad, momentum = local(target), local(grad), local(momentum)
        elif cut is not None:
            grad = ordered_like(target, grad)
        shape = target.shape
        if 0 in shape:
            continue
        key = (p.device, target.dtype, grad.dtype, momentum.dtype)
        bucket = buckets.get(key)
        if bucket is None:
            bucket = buckets[key] = Bucket([], [], [], [], [], [], [])
        bucket.absmax.extend(absmax)
        if normalizer is not None:
            bucket.moments.extend(normalizer.moments(state, target, cut))
        if cut is None:  # one matrix, which `split` would return: most parameters, and this runs for each in each step
            views = [target]
            bucket.params.append(target)
            bucket.grads.append(grad)
            bucket.momenta.append(momentum)
        else:
            views = split(target, cut)
            bucket.params.extend(views)
            bucket.grads.extend(split(grad, cut))
            bucket.momenta.extend(split(momentum, cut))
        if group["rounding"] == "stochastic":
            bucket.keys.extend(rounding_keys(state, views))
        for matrix in views:
            shapes = (shape, matrix.shape)
            scale = scales.get(shapes)
            if scale is None:
                scale = scales[shapes] = lr_scale(group, p, layout, matrix.shape)
            bucket.scales.append(scale)
    return list(buckets.values())


@contextmanager
def open_bucket(group: dict[str, Any], stored: Bucket, found_inf: Tensor | None) -> Iterator[Bucket]:
    """What a step over `stored` works with: float32 copies in the place of what the group keeps in fewer bits, which
    are stored at the end."""
    with ExitStack() as copies:
        bucket = stored
        if stored.absmax:
            momenta = group["momentum_store"].opened(stored.momenta, stored.absmax)
            bucket = bucket._replace(momenta=copies.enter_context(momenta))
        if stored.keys:
            params = stochastically_rounded(stored.params, stored.keys, found_inf)
            bucket = bucket._replace(params=copies.enter_context(params))
        yield bucket


def open_bytes(group: dict[str, Any]) -> int:
    """Scratch memory that `open_bucket` takes for an element."""
    store = 0 if group["momentum_store"] is None else group["momentum_store"].scratch_bytes
    return store + (SCRATCH_BYTES if group["rounding"] == "stochastic" else 0)


def lr_scale(group: dict[str, Any], p: Tensor, layout: Layout, shape: Sequence[int]) -> float:
    """What lr is multiplied by for a matrix of `shape` of the parameter `p` in a step with this layout."""
    return resolve_rule(group["adjust_lr_fn"])(shape) * step_factor(p.shape, layout) * block_factor(group, layout)


def _new_momentum(group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> Tensor:
    assert p.grad is not None
    if "momentum_codes" in state:
        raise ValueError(
            f"a parameter of shape {list(p.shape)} has an 8-bit momentum, but momentum_store is None; "
            "muon_kernels.compat.dequantized converts a checkpoint"
        )
    return torch.zeros_like(p.grad, dtype=group["momentum_dtype"], memory_format=torch.preserve_format)
