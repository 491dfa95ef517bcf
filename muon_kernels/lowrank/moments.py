"""Running averages of the singular vectors and values of gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..svd import svd_without_null

KEYS = ("left_avg", "right_avg", "exp_avg", "exp_avg_sq", "weight", "weight_sq")
"""The state of a parameter [rows, cols] at rank r: averages [rows, r] and [cols, r] of the singular vectors, in float32
(float64 of float64 parameters); in float64 the averages [r] of the singular values and of their squares, and the sums
[r] of the weights in these averages, which both start at zero."""


def new_state(p: Tensor) -> dict[str, Tensor]:
    """A state of rank 0."""
    dtype = torch.promote_types(p.dtype, torch.float32)
    rows, cols = p.shape
    vectors = {
        "left_avg": torch.zeros(rows, 0, dtype=dtype, device=p.device),
        "right_avg": torch.zeros(cols, 0, dtype=dtype, device=p.device),
    }
    return vectors | {key: torch.zeros(0, dtype=torch.float64, device=p.device) for key in KEYS[2:]}


def check_state(p: Tensor, state: Mapping[str, Tensor]) -> None:
    """Raises ValueError for a state that is neither empty nor made here, such as another optimizer's."""
    if not state:
        return
    found = {key: list(value.shape) for key, value in state.items()}
    rank = found.get("exp_avg", [0])[-1]
    expected = {key: [rank] for key in KEYS} | {"left_avg": [p.shape[0], rank], "right_avg": [p.shape[1], rank]}
    if found != expected:
        raise ValueError(f"the state of a parameter of shape {list(p.shape)} must be like {expected}, got {found}")


def moved_moments(
    states: Sequence[Mapping[str, Tensor]], grads: Sequence[Tensor], rank: int, momentum: float, beta2: float
) -> dict[str, Tensor]:
    """The averages of parameters of one shape after a step, stacked, by their names.

    With U S V^T the singular value decomposition of a gradient, cut to `rank`, and R from `alignment`:

        left_avg <- momentum left_avg R + (1 - momentum) U          right_avg alike with V
        exp_avg <- momentum diag(R^T diag(exp_avg) R) + (1 - momentum) S
        exp_avg_sq alike with beta2 and S^2, the sums of weights alike with 1

    A gradient that is not finite makes exp_avg NaN and leaves the vectors finite; null directions do not enter the
    averages of vectors.

    Args:
        states: of one rank, which may be another than `rank`; not written.
        grads: [rows, cols] each, of any floating dtype.
    """
    old = {key: torch.stack([state[key] for state in states]) for key in KEYS}
    u, s, vh = svd_without_null(torch.stack(list(grads)).to(old["left_avg"].dtype))
    left, s, right = u[..., :rank], s[:, :rank], vh.mT[..., :rank]
    rotation = alignment(old["left_avg"], old["right_avg"], left, right)
    mixing = rotation.double().square().mT
    one = torch.ones_like(s)

    def averaged(key: str, new: Tensor, decay: float) -> Tensor:
        return ((mixing @ old[key][..., None])[..., 0]).lerp_(new, 1 - decay)

    return {
        "left_avg": (old["left_avg"] @ rotation).lerp_(left, 1 - momentum),
        "right_avg": (old["right_avg"] @ rotation).lerp_(right, 1 - momentum),
        "exp_avg": averaged("exp_avg", s, momentum),
        "exp_avg_sq": averaged("exp_avg_sq", s.square(), beta2),
        "weight": averaged("weight", one, momentum),
        "weight_sq": averaged("weight_sq", one, beta2),
    }


def alignment(left_avg: Tensor, right_avg: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """R [..., old rank, rank], which brings left_avg R closest to U [..., rows, rank] and right_avg R to V: the polar
    factor of left_avg^T U + right_avg^T V (orthogonal Procrustes, Schönemann 1966).

    Singular vectors are defined up to a sign, and within equal singular values up to a rotation: averaged as they come,
    they cancel. The averages are turned and not the vectors, so that their columns stay the singular directions, in
    order, whatever the rank was. R has orthonormal rows or columns even if the sum has null directions, which
    `muon_kernels.svd.polar_factor` would leave out.
    """
    u, _, vh = torch.linalg.svd(left_avg.mT @ left + right_avg.mT @ right, full_matrices=False)
    return u @ vh


def adam_ratio(moments: Mapping[str, Tensor], eps: float) -> Tensor:
    """Adam's step of the singular values, m / (sqrt(v) + eps), with m and v the averages over their sums of weights."""
    mean = moments["exp_avg"] / moments["weight"]
    return mean / ((moments["exp_avg_sq"] / moments["weight_sq"]).sqrt() + eps)
