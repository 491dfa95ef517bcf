"""Running averages of the singular vectors and values of gradients, column by column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..orthogonalize import svd_without_null

KEYS = ("left_avg", "right_avg", "exp_avg", "exp_avg_sq", "step")
"""The state of a parameter [rows, cols] at rank r: averages [rows, r] and [cols, r] of the singular vectors, in float32
(float64 of float64 parameters); in float64 the averages [r] of the singular values and of their squares, and how often
each column was averaged, [r]."""


def new_state(p: Tensor) -> dict[str, Tensor]:
    """A state of rank 0."""
    dtype = torch.promote_types(p.dtype, torch.float32)
    rows, cols = p.shape
    vectors = {
        "left_avg": torch.zeros(rows, 0, dtype=dtype, device=p.device),
        "right_avg": torch.zeros(cols, 0, dtype=dtype, device=p.device),
    }
    return vectors | {key: torch.zeros(0, dtype=torch.float64, device=p.device) for key in KEYS[2:]}


def set_rank(state: dict[str, Any], rank: int) -> None:
    """Gives the state `rank` columns: those with the largest average singular values stay, new ones are zero."""
    old = state["exp_avg"].numel()
    if rank < old:
        kept = state["exp_avg"].argsort(descending=True, stable=True)[:rank]
        state.update({key: state[key].index_select(-1, kept) for key in KEYS})
    elif rank > old:
        state.update({key: pad(state[key], (0, rank - old)) for key in KEYS})


def update_moments(
    states: Sequence[dict[str, Any]], grads: Sequence[Tensor], momentum: float, beta2: float
) -> dict[str, Tensor]:
    """Moves the averages of parameters of one shape and rank, and returns them stacked, by their names.

    With U S V^T the singular value decomposition of a gradient, cut to the rank, and R from `alignment`:

        left_avg <- momentum left_avg + (1 - momentum) U R^T        right_avg alike with V
        exp_avg <- momentum exp_avg + (1 - momentum) d              d = diag(R S R^T)
        exp_avg_sq <- beta2 exp_avg_sq + (1 - beta2) d^2

    d is the diagonal of the gradient's core in the aligned basis, (U R^T)^T G (V R^T). A gradient that is not finite
    makes exp_avg NaN and leaves the vectors finite; null directions do not enter the averages of vectors.
    """
    moments = {key: torch.stack([state[key] for state in states]) for key in KEYS}
    rank = moments["exp_avg"].shape[1]
    u, s, vh = svd_without_null(torch.stack(list(grads)).to(moments["left_avg"].dtype))
    left, right = u[..., :rank], vh.mT[..., :rank]
    rotation = alignment(moments["left_avg"], moments["right_avg"], left, right)
    core = (rotation.double().square() @ s[:, :rank, None])[..., 0]
    moments["left_avg"].lerp_(left @ rotation.mT, 1 - momentum)
    moments["right_avg"].lerp_(right @ rotation.mT, 1 - momentum)
    moments["exp_avg"].lerp_(core, 1 - momentum)
    moments["exp_avg_sq"].lerp_(core.square(), 1 - beta2)
    moments["step"].add_(1)
    for key in KEYS:
        torch._foreach_copy_([state[key] for state in states], list(moments[key].unbind(0)))
    return moments


def alignment(left_avg: Tensor, right_avg: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The rotation R [..., r, r] that brings U R^T and V R^T closest to the averages: the polar factor of
    left_avg^T U + right_avg^T V (orthogonal Procrustes, Schönemann 1966).

    Singular vectors are defined up to a sign, and within equal singular values up to a rotation: averaged as they come,
    they cancel. Null directions of the sum, such as new columns, are completed to a rotation, where
    `muon_kernels.orthogonalize.polar_factor` would leave them out.
    """
    u, _, vh = torch.linalg.svd(left_avg.mT @ left + right_avg.mT @ right)
    return u @ vh


def adam_ratio(moments: dict[str, Tensor], momentum: float, beta2: float, eps: float) -> Tensor:
    """Adam's step of the singular values, m / (sqrt(v) + eps) with both averages corrected for their start at zero."""
    mean = moments["exp_avg"] / (1 - momentum ** moments["step"])
    mean_sq = moments["exp_avg_sq"] / (1 - beta2 ** moments["step"])
    return mean / (mean_sq.sqrt() + eps)
