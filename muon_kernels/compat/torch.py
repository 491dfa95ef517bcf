"""What `torch.optim.Muon` and its module `torch.optim._muon` offer: the class, which `muon_kernels.Muon` is a drop-in
for, and the two helpers that other code imports."""

from __future__ import annotations

import torch
from torch import Tensor

from ..muon import Muon
from ..orthogonalize import orthogonalize
from ..scaling import resolve_rule

__all__ = ["Muon"]


def _zeropower_via_newtonschulz(
    grad: Tensor, ns_coefficients: tuple[float, float, float], ns_steps: int, eps: float
) -> Tensor:
    """The standard chain in bfloat16 on one matrix; returns bfloat16 [rows, cols], `grad` stays as it is."""
    if grad.ndim != 2:
        raise ValueError(f"grad must be a 2D matrix, got shape {list(grad.shape)}")
    return orthogonalize(
        grad,
        method="standard",
        ns_coefficients=ns_coefficients,
        ns_steps=ns_steps,
        eps=eps,
        compute_dtype=torch.bfloat16,
        out_dtype=torch.bfloat16,
    )


def _adjust_lr(lr: float, adjust_lr_fn: str | None, param_shape: torch.Size) -> float:
    """lr times the rule's factor for [rows, cols]."""
    return lr * resolve_rule(adjust_lr_fn)(param_shape)
