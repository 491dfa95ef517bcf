"""The matrices of a group in a step: views of what is stepped, of gradients and of what the state keeps."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .described import Described, describe
from .distributed.dtensors import local
from .matrices import Layout, ordered_like, split
from .periodic import layout_of_step
from .variants.rounding import SCRATCH_BYTES, rounding_keys, stochastically_rounded


class Bucket(NamedTuple):
    """Matrices of a step: views of parameter, gradient and momentum.

    moments: views of their second moments if the group has a normaliser, otherwise empty.
    absmax: views of their momenta's block maxima if the group has a momentum store (`momenta` are codes then),
        otherwise empty.
    keys: views of their keys if the group's rounding is stochastic, otherwise empty.
    """

    params: list[Tensor]
    grads: list[Tensor]
    momenta: list[Tensor]
    moments: list[Tensor]
    absmax: list[Tensor]
    keys: list[Tensor]

    def select(self, order: Sequence[int]) -> Bucket:
        return Bucket._make([values[i] for i in order] if values else [] for values in self)


def fill_bucket(
    group: dict[str, Any],
    params: list[Tensor],
    grads: list[Tensor],
    described: Described,
    states: Mapping[Tensor, dict[str, Any]],
) -> tuple[Bucket, list[Tensor]]:
    """The matrices of a group, and for each the parameter that it belongs to. An empty parameter has none.

    One list after the other, each for all parameters: this runs in every step while the device may have nothing to do.
    Lists that need no change are the bucket's.

    Args:
        params: those of the group that have a gradient.
        grads: their gradients.
        described: what is stepped of each, the parameter itself or its copy of higher precision.
        states: of the parameters; what a step needs is created where it is missing.
    """
    layout, normalizer, store = layout_of_step(group), group["normalizer"], group["momentum_store"]
    cut = None if layout == "shards" else layout
    targets, own = described.tensors, _states(params, states)
    blocks: list[list[Tensor]] = []
    if store is None:
        momenta = _momenta(group, params, targets, own, cut)
    else:
        stored = [store.stored(state, target, cut) for state, target in zip(own, targets, strict=True)]
        momenta, blocks = [codes for codes, _ in stored], [maxima for _, maxima in stored]
    if layout == "shards":
        targets, grads, momenta = (list(map(local, tensors)) for tensors in (targets, grads, momenta))
        described = describe(targets)
    if described.any_empty:
        filled = [i for i, target in enumerate(targets) if target.numel()]
        params, targets, grads, momenta = ([x[i] for i in filled] for x in (params, targets, grads, momenta))
        own, blocks = [own[i] for i in filled], [blocks[i] for i in filled if blocks]
    moments: list[list[Tensor]] = []
    if normalizer is not None:
        moments = [normalizer.moments(state, target, cut) for state, target in zip(own, targets, strict=True)]
    matrices, owners, views = targets, params, None
    if cut is not None:
        grads = [ordered_like(target, grad) for target, grad in zip(targets, grads, strict=True)]
        grads, momenta = (_flat([split(x, cut) for x in tensors]) for tensors in (grads, momenta))
        views = [split(target, cut) for target in targets]
        matrices = _flat(views)
        owners = _flat([[p] * len(cut_up) for p, cut_up in zip(params, views, strict=True)])
    keys: list[list[Tensor]] = []
    if group["rounding"] == "stochastic":
        of_each = views or [[target] for target in targets]
        keys = [rounding_keys(state, mine) for state, mine in zip(own, of_each, strict=True)]
    return Bucket(matrices, grads, momenta, _flat(moments), _flat(blocks), _flat(keys)), owners


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


def _states(params: list[Tensor], states: Mapping[Tensor, dict[str, Any]]) -> list[dict[str, Any]]:
    """The states of parameters. Where those come first, in their order, as after the steps of a first group, no key is
    looked up: the hashes of tensors take longer."""
    if len(states) >= len(params) and all(map(operator.is_, states, params)):
        return list(islice(states.values(), len(params)))
    return [states[p] for p in params]


def _momenta(
    group: dict[str, Any], params: list[Tensor], targets: list[Tensor], own: list[dict[str, Any]], cut: Layout
) -> list[Tensor]:
    """The momentum buffers, zero at first, with their dimensions in the order of what is stepped if that is cut."""
    for p, state in zip(params, own, strict=True):
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = _new_momentum(group, p, state)
    if cut is not None:
        for target, state in zip(targets, own, strict=True):
            state["momentum_buffer"] = ordered_like(target, state["momentum_buffer"])
    return [state["momentum_buffer"] for state in own]


def _new_momentum(group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> Tensor:
    assert p.grad is not None
    if "momentum_codes" in state:
        raise ValueError(
            f"a parameter of shape {list(p.shape)} has an 8-bit momentum, but momentum_store is None; "
            "muon_kernels.compat.dequantized converts a checkpoint"
        )
    return torch.zeros_like(p.grad, dtype=group["momentum_dtype"], memory_format=torch.preserve_format)


def _flat(lists: list[list[Tensor]]) -> list[Tensor]:
    return [x for row in lists for x in row]
