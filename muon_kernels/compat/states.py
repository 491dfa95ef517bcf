"""Checkpoints of other Muon packages as ours: pure functions of state dicts.

Ours is torch.optim.Muon's: "momentum_buffer" holds the average e <- momentum e + (1 - momentum) g. A classical buffer
c <- momentum c + g is e / (1 - momentum), exactly as long as momentum never changed. torch's state dicts need no
conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..scaling import Rule

StateDict = dict[str, Any]

_ADJUST_LR = {"rms_norm": "match_rms_adamw", "spectral_norm": "spectral_unclamped", None: "constant"}


def from_keller_jordan(state_dict: StateDict) -> StateDict:
    """A checkpoint of one of Keller Jordan's classes: Adam's step becomes a tensor. Ours passes through unchanged."""

    def convert(state: dict[str, Any], _: dict[str, Any]) -> dict[str, Any]:
        if isinstance(state.get("step"), int):
            state["step"] = torch.tensor(float(state["step"]))
        return state

    return _converted(state_dict, convert)


def merge_ranks(state_dicts: Sequence[StateDict]) -> StateDict:
    """The checkpoints that all ranks saved of one of Keller Jordan's distributed classes, as one.

    There a rank keeps the momentum of the parameters it owns only.

    Raises:
        ValueError: none given, groups that differ, or a parameter that no rank holds a state of.
    """
    if not state_dicts:
        raise ValueError("merge_ranks needs at least one state dict, got none")
    groups = state_dicts[0]["param_groups"]
    for rank, other in enumerate(state_dicts):
        if [g["params"] for g in other["param_groups"]] != [g["params"] for g in groups]:
            raise ValueError(f"the groups of rank {rank} differ from those of rank 0")
    merged: dict[int, Any] = {}
    for other in reversed(state_dicts):
        merged |= {key: state for key, state in other["state"].items() if state}
    missing = [i for group in groups for i in group["params"] if i not in merged]
    if missing:
        raise ValueError(f"no rank holds a state of parameters {missing}: are all ranks' checkpoints here?")
    return {"state": merged, "param_groups": groups}


def from_gram_newton_schulz(state_dict: StateDict) -> StateDict:
    """A checkpoint of gram_newton_schulz.Muon: classical "momentum" becomes the average "momentum_buffer", and
    `adjust_lr` the rule that `Muon` calls by another name. Ours passes through unchanged.

    The package saves no state of its scalar optimizer: its averages start anew, its hyper-parameters are restored.
    """

    def convert(state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        if "momentum" in state:
            state["momentum_buffer"] = state.pop("momentum") * (1 - group["momentum"])
        return state

    converted = _converted(state_dict, convert)
    for group in converted["param_groups"]:
        for key in ("param_split_fn", "param_recombine_fn"):  # the optimizer that loads has its own layout
            group.pop(key, None)
        if "adjust_lr" in group:
            rule = group.pop("adjust_lr")
            if not callable(rule):  # as above for a function
                group["adjust_lr_fn"] = adjust_lr_rule(rule)
    return converted


def adjust_lr_rule(adjust_lr: str | Callable[[float, Sequence[int]], float] | None) -> str | Rule:
    """What gram-newton-schulz calls `adjust_lr` as `adjust_lr_fn`; a function (lr, shape) -> lr must be proportional to
    lr. ValueError for anything else."""
    if callable(adjust_lr):
        function = adjust_lr
        return lambda shape: function(1.0, shape)
    if adjust_lr not in _ADJUST_LR:
        names = ", ".join(name for name in _ADJUST_LR if name)
        raise ValueError(f"adjust_lr must be None, a function or one of {names}, got {adjust_lr!r}")
    return _ADJUST_LR[adjust_lr]


def from_timm(state_dict: StateDict) -> StateDict:
    """A checkpoint of timm.optim.Muon, for `load_by_parameter`: timm decides for Muon or AdamW inside a group, so that
    its groups are not ours. NAdamW (its fallback with nesterov=True) has no counterpart here: AdamW continues it."""

    def convert(state: dict[str, Any], _: dict[str, Any]) -> dict[str, Any]:
        state.pop("use_muon", None)
        return state

    return _converted(state_dict, convert)


def dequantized(state_dict: StateDict) -> StateDict:
    """A checkpoint of `Muon` without momentum stores: "momentum_buffer" in float32 instead of 8-bit codes."""

    def convert(state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        store = group.get("momentum_store")
        if store is not None and store.codes_key in state:
            state["momentum_buffer"] = store.dequantized(state, group["layout"])
            del state[store.codes_key], state[store.absmax_key]
        return state

    converted = _converted(state_dict, convert)
    for group in converted["param_groups"]:
        if "momentum_store" in group:
            group["momentum_store"] = None
    return converted


def _converted(state_dict: StateDict, convert: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]) -> StateDict:
    """A copy, one level deep, with `convert(state, group)` in the place of every parameter's state."""
    groups = [dict(group) for group in state_dict["param_groups"]]
    states = {
        i: convert(dict(state_dict["state"][i]), group)
        for group in groups
        for i in group["params"]
        if i in state_dict["state"]
    }
    return {"state": states, "param_groups": groups}
