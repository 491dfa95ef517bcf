"""The exact polar factor, by SVD."""

from __future__ import annotations

import torch
from torch import Tensor


def polar_factor(matrices: Tensor) -> Tensor:
    """U V^T of every matrix in [batch, rows, cols] by SVD, in float32 (float64 for float64 input).

    Null directions stay null. A matrix that is not finite becomes NaN.
    """
    u, s, vh = svd_without_null(matrices)
    return torch.where(s[:, :1, None].isnan(), torch.nan, u @ vh)


def polar_dtype(dtype: torch.dtype) -> torch.dtype:
    """What matrices of `dtype` are decomposed in, and their polar factors come in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def svd_without_null(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U [batch, rows, k], S [batch, k] and V^T [batch, k, cols], k = min(rows, cols), by SVD, S descending.

    Singular values within rounding of zero count as zero, and their columns of U and rows of V^T are zero too. A matrix
    that is not finite has S NaN and U and V zero. U and V are float32 (float64 for float64 input), S is float64.
    """
    work = matrices.to(polar_dtype(matrices.dtype))
    finite = work.isfinite().all(dim=-1).all(dim=-1)[:, None, None]
    # A power of two keeps the decomposition away from overflow and underflow and changes no digit.
    largest = work.abs().amax(dim=(-2, -1), keepdim=True)
    work = torch.where(finite, work, 0.0)
    exponent = torch.frexp(torch.where(finite, largest, 1.0)).exponent
    u, s, vh = torch.linalg.svd(torch.ldexp(work, -exponent), full_matrices=False)
    kept = s > s[:, :1] * (max(work.shape[-2:]) * torch.finfo(work.dtype).eps)
    s = torch.ldexp((s * kept).double(), exponent[:, 0])
    return u * kept[:, None, :], torch.where(finite[:, 0], s, torch.nan), vh * kept[:, :, None]
