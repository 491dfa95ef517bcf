"""States loaded by parameter, where another optimizer's groups are not ours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..matrices import split
from ..muon import Muon
from ..variants.rounding import KEY
from .states import StateDict, dequantized

_MUON_KEYS = {"momentum_buffer"}
_ADAMW_KEYS = {"step", "exp_avg", "exp_avg_sq"}


def load_by_parameter(optimizer: Muon, *checkpoints: tuple[StateDict, Iterable[Tensor]]) -> None:
    """Loads momenta and averages from one or several checkpoints whose groups are not those of `optimizer`.

    For example torch.optim.Muon's and torch.optim.AdamW's into one `Muon`. The optimizer's own options stay.

    Args:
        optimizer: what to load into; parameters that no checkpoint speaks of keep their state.
        checkpoints: pairs of a state dict (converted by the function for its package) and the parameters, in the order
            in which its optimizer got them.

    Raises:
        ValueError: a parameter that is not in `optimizer` or comes twice, a count, shape or kind of state that does not
            fit. Nothing has been changed then.
    """
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    found: dict[Tensor, dict[str, Any]] = {}
    for number, (saved, params) in enumerate(checkpoints):
        state_dict = dequantized(saved)
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        given = list(params)
        if len(given) != len(ids):
            raise ValueError(f"checkpoint {number} holds {len(ids)} parameters, got {len(given)}")
        for i, p in zip(ids, given, strict=True):
            if p not in groups or p in found:
                problem = "comes twice" if p in found else "is not in the optimizer"
                raise ValueError(f"parameter {i} of checkpoint {number}, shape {list(p.shape)}, {problem}")
            state = state_dict["state"].get(i)
            if state:
                _check_state(state, p, groups[p], f"parameter {i} of checkpoint {number}")
                found[p] = state
    ours = optimizer.state_dict()
    for i, p in enumerate(groups):
        if p in found:
            ours["state"][i] = found[p]
    optimizer.load_state_dict(ours)


def _check_state(state: dict[str, Any], p: Tensor, group: dict[str, Any], where: str) -> None:
    needed = _MUON_KEYS if group["use_muon"] else _ADAMW_KEYS
    if not group["use_muon"] and group["algorithm"] == "nadam":
        needed = needed | {"mu_product"}
    optional = {"master": p.shape}
    if group["rounding"] == "stochastic":
        matrices = len(split(p.detach(), group["layout"])) if group["use_muon"] else 1
        optional[KEY] = torch.Size([matrices])
    if group["use_muon"] and group["normalizer"] is not None:
        optional[group["normalizer"].key] = group["normalizer"].shape(p, group["layout"])
    if set(state) - set(optional) != needed:
        raise ValueError(f"{where} must have the state {sorted(needed)}, got {sorted(state)}")
    for key, value in state.items():
        expected = optional.get(key, p.shape)
        if not isinstance(value, Tensor) or (value.ndim and value.shape != expected):
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{where} must have a {key!r} of shape {list(expected)}, got {shape}")
