"""Our checkpoints as torch.optim's."""

from __future__ import annotations

from typing import Any

from ..coefficients import resolve_coefficients
from ..variants.rounding import KEY
from .states import StateDict, dequantized

_MUON_OPTIONS = ("lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")
_TORCH_RULES = (None, "original", "match_rms_adamw", "spectral_unclamped")
_TORCH_ADAMW_OPTIONS: dict[str, Any] = {
    "amsgrad": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "decoupled_weight_decay": True,
}
_DROPPED = ("master", KEY)
"""What makes up for the parameters' few bits."""
_KEPT = ("initial_lr", "param_names")
"""What schedulers and named parameters add to a group."""


def to_torch(state_dict: StateDict) -> tuple[StateDict, StateDict]:
    """A checkpoint of `Muon` as torch.optim.Muon's (the `use_muon` groups) and torch.optim.AdamW's (the rest).

    Parameters are numbered anew within each, in their order. An 8-bit momentum becomes float32.

    Raises:
        ValueError: a group that torch cannot continue, with the option and its value: a layout, maximize, a
            normaliser, cautious decay, a safety factor, the method "svd", a rule or coefficients that torch does not
            have, NAdam.
    """
    state_dict = dequantized(state_dict)
    parts: tuple[StateDict, StateDict] = ({"state": {}, "param_groups": []}, {"state": {}, "param_groups": []})
    counts = [0, 0]
    for number, group in enumerate(state_dict["param_groups"]):
        which = 0 if group["use_muon"] else 1
        states = [state_dict["state"].get(i, {}) for i in group["params"]]
        options = _torch_adamw_options(group, number) if which else _torch_muon_options(group, number, states)
        ids = range(counts[which], counts[which] + len(group["params"]))
        counts[which] += len(ids)
        options |= {key: group[key] for key in _KEPT if key in group}
        parts[which]["param_groups"].append(options | {"params": list(ids)})
        for i, state in zip(ids, states, strict=True):
            if state:
                # torch's AdamW counts on the CPU unless it is capturable or fused.
                kept = {key: value for key, value in state.items() if key not in _DROPPED}
                parts[which]["state"][i] = {k: v.cpu() if k == "step" else v for k, v in kept.items()}
    return parts


def _torch_muon_options(group: dict[str, Any], number: int, states: list[dict[str, Any]]) -> dict[str, Any]:
    # These two leave a matrix as it is.
    plain = group["layout"] in ("flatten", "batch") and all(s["momentum_buffer"].ndim == 2 for s in states if s)
    rows = set(resolve_coefficients(group["ns_coefficients"], max(group["ns_steps"], 1)))
    for name, fits, needed in (
        ("layout", group["layout"] is None or plain, "None"),
        ("maximize", not group["maximize"], "False"),
        ("period", group["period"] is None, "None"),
        ("normalizer", group["normalizer"] is None, "None"),
        ("weight_decay_rule", group["weight_decay_rule"] == "decoupled", "'decoupled'"),
        ("safety_factor", group["safety_factor"] == 1.0, "1.0"),
        ("preconditioning", group["preconditioning"] == "frobenius", "'frobenius'"),
        ("method", group["method"] not in ("squaring", "svd"), "a Newton-Schulz chain"),
        ("adjust_lr_fn", group["adjust_lr_fn"] in _TORCH_RULES, f"one of {_TORCH_RULES}"),
        ("ns_coefficients", len(rows) == 1, "one row for all steps"),
    ):
        if not fits:
            raise ValueError(f"torch.optim.Muon needs {name} to be {needed}, got {group[name]!r} in group {number}")
    return {name: group[name] for name in _MUON_OPTIONS} | {"ns_coefficients": rows.pop()}


def _torch_adamw_options(group: dict[str, Any], number: int) -> dict[str, Any]:
    if group["algorithm"] != "adamw":
        raise ValueError(f"torch.optim.AdamW cannot continue algorithm {group['algorithm']!r} of group {number}")
    options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay", "maximize")}
    return options | _TORCH_ADAMW_OPTIONS
