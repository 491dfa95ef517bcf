"""What a group of an optimizer may hold, and what a gradient must be like."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .coefficients import freeze_coefficients, resolve_coefficients
from .matrices import freeze_layout
from .negated import check_not_negated
from .orthogonalize import COMPUTE_DTYPES, check_coefficients, check_options
from .periodic import check_period
from .preconditioning import check_preconditioning
from .scaling import resolve_rule
from .variants.int8_momentum import check_momentum_store
from .variants.normalizers import NorMuon, check_normalizer
from .variants.rounding import check_rounding
from .variants.weight_decay import check_rule

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in COMPUTE_DTYPES}


def with_dtypes(options: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with dtypes in the place of their names, as a configuration file writes them; the checks refuse others."""
    named = ("compute_dtype", "momentum_dtype", "master_dtype")
    return dict(options) | {key: _DTYPES.get(options[key], options[key]) for key in named if key in options}


def check_common(options: dict[str, Any]) -> None:
    """Raises TypeError or ValueError for an option of any group that is out of its range."""
    for name in ("momentum", "eps", "safety_factor"):
        _check_number(name, options[name])
    for name in ("nesterov", "maximize"):
        if isinstance(options[name], str):  # any but the empty one is true, "false" too
            raise TypeError(f"{name} must be True or False, got {options[name]!r}")
    check_rates(options)
    _check_dtype("master_dtype", options["master_dtype"])
    check_rounding(options["rounding"], options["master_dtype"])


def check_rates(options: dict[str, Any]) -> None:
    """Raises TypeError or ValueError for lr or weight_decay out of its range."""
    for name in ("lr", "weight_decay"):
        _check_number(name, options[name])
    check_lr(options["lr"])
    for name in ("lr", "weight_decay"):
        # A tensor on a device is not read here: that would wait for the device.
        value = options[name]
        if not (isinstance(value, Tensor) and value.device.type != "cpu") and not 0.0 <= float(value) < math.inf:
            raise ValueError(f"{name} must be >= 0 and finite, got {value}")


def check_lr(lr: float | Tensor) -> None:
    """Raises for a tensor of more than one element, or of another dtype than the kernels read."""
    if not isinstance(lr, Tensor):
        return
    if lr.numel() != 1:
        raise ValueError(f"lr must be a float or a one-element tensor, got shape {list(lr.shape)}")
    if lr.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"lr must be a float or a float32 or float64 tensor, got {lr.dtype}")


MUON_OPTIONS = (
    "momentum",
    "ns_coefficients",
    "ns_steps",
    "method",
    "adjust_lr_fn",
    "layout",
    "eps",
    "safety_factor",
    "compute_dtype",
    "period",
    "block_lr_scale",
    "preconditioning",
    "momentum_dtype",
    "momentum_store",
    "normalizer",
    "rounding",
    "weight_decay_rule",
)
"""What `check_muon` looks at."""


def check_muon(options: dict[str, Any]) -> None:
    """Raises TypeError or ValueError for an option of a Muon group that is out of its range."""
    check_momentum(options["momentum"])
    resolve_coefficients(options["ns_coefficients"], options["ns_steps"])
    check_coefficients(options["method"], options["ns_coefficients"], options["ns_steps"])
    resolve_rule(options["adjust_lr_fn"])
    freeze_layout(options["layout"])
    check_options(
        options["method"],
        options["eps"],
        options["safety_factor"],
        options["compute_dtype"] or torch.float32,
    )
    check_period(options)
    check_preconditioning(options["preconditioning"], options["method"])
    _check_dtype("momentum_dtype", options["momentum_dtype"])
    check_momentum_store(options)
    check_normalizer(options["normalizer"])
    check_rule(options["weight_decay_rule"])


def frozen(options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that a caller might still change from outside, in a form that nobody can."""
    return {
        "ns_coefficients": freeze_coefficients(options["ns_coefficients"]),
        "layout": freeze_layout(options["layout"]),
    }


def check_momentum(momentum: float) -> None:
    """Raises ValueError for a decay that is not in [0, 1)."""
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")


def check_shared(group: dict[str, Any]) -> None:
    """Raises ValueError for an option that parameters of several ranks cannot have."""
    muon = group["use_muon"]
    for name, fits, needed in (
        ("rounding", group["rounding"] == "nearest", "nearest"),
        ("momentum_store", not muon or group["momentum_store"] is None, "None"),
        ("normalizer", not muon or isinstance(group["normalizer"], NorMuon | None), "None or NorMuon(...)"),
    ):
        if not fits:
            raise ValueError(f"{name} must be {needed} for parameters that several ranks share, got {group[name]}")
    if muon and group["period"] and group["layout"] != "shards":
        raise ValueError(
            f"a period needs layout 'shards' for parameters that several ranks share, got {group['layout']!r}"
        )


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, (Real, Tensor)):
        raise TypeError(f"{name} must be a number, got {value!r}")


def _check_dtype(name: str, dtype: torch.dtype | None) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"{name} must be None or a floating dtype, got {dtype}")


def check_grads(params: list[Tensor]) -> None:
    """Raises RuntimeError for a gradient that is sparse, not floating point, or not like its parameter, and ValueError
    for a gradient or parameter that torch negates as it reads it."""
    for p in params:
        grad = p.grad
        assert grad is not None
        if grad.layout is not torch.strided:
            raise RuntimeError(f"Muon does not support sparse gradients, got {grad.layout} for shape {list(p.shape)}")
        if not grad.is_floating_point():
            raise RuntimeError(f"gradients must be real floating point, got {grad.dtype} for shape {list(p.shape)}")
        if grad.shape != p.shape or grad.device != p.device:
            raise RuntimeError(
                f"a gradient must match its parameter ({list(p.shape)} on {p.device}), "
                f"got {list(grad.shape)} on {grad.device}"
            )
        check_not_negated("a gradient", grad)
        check_not_negated("a parameter", p)
