"""AOL preconditioning: every row of a wide X divided by the root of the absolute row sum of its Gram matrix.

    A = XX^T,    X <- diag(s) X,    s_i = 1 / (safety_factor sqrt(sum_j |A_ij|))

bounds the largest singular value by 1 as the Frobenius norm does, but far more tightly, which saves a Newton-Schulz
step. The chain then converges to the polar factor of diag(s) X, which is not that of X. Almost-orthogonal Lipschitz
layers, https://arxiv.org/abs/2208.03160; in front of Muon: Turbo-Muon, https://arxiv.org/abs/2512.04632.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

Preconditioning = Literal["frobenius", "aol"]


def check_preconditioning(preconditioning: str, method: str) -> None:
    """Raises ValueError for an unknown name, and for "aol" in front of a method that needs no bound."""
    if preconditioning not in get_args(Preconditioning):
        raise ValueError(
            f"preconditioning must be one of {', '.join(get_args(Preconditioning))}, got {preconditioning!r}"
        )
    if preconditioning == "aol" and method == "svd":
        raise ValueError("preconditioning 'aol' needs a Newton-Schulz chain, got method 'svd'")


def lift(compute_dtype: torch.dtype) -> float:
    """What Gram matrices for `aol` are multiplied by: in float16 rows below 1e-3 of the norm would vanish without."""
    return 2.0**15 if compute_dtype == torch.float16 else 1.0


def aol(xs: Sequence[Tensor], grams: Sequence[Tensor], *, safety_factor: float) -> None:
    """Rescales the rows of every matrix (of a tall one the columns) in place. A row of zeros stays, NaN stays NaN.

    Args:
        xs: problem list [batch, rows, cols] of matrices with Frobenius norms of at most 1.
        grams: [batch, m, m] for each, m = min(rows, cols), of the same dtype: `lift` times XX^T (of a tall one X^T X).
        safety_factor: singular values end up this much smaller, >= 1.
    """
    for x, gram in zip(xs, grams, strict=True):
        dtype = torch.promote_types(gram.dtype, torch.float32)
        sums = torch.linalg.vector_norm(gram, ord=1, dim=2, keepdim=True, dtype=dtype)
        scale = torch.where(sums > 0, (lift(gram.dtype) / sums).sqrt() / safety_factor, 1.0)
        x.mul_(scale if x.shape[1] <= x.shape[2] else scale.mT)
