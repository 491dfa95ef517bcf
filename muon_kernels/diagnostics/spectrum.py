"""Singular values and what is made of them: norms, ranks, condition numbers, distance from orthogonal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Method = Literal["svd", "gram"]
METHODS = get_args(Method)
Measure = Callable[[Tensor, torch.dtype], tuple[Tensor, Tensor, Tensor]]

SQUARINGS = 8
LARGEST_GRAM_CONDITION = 1e6
"""A Gram matrix in float64 resolves condition numbers up to here: at 9e5 and r = 768 they were off by 1e-5."""

LEAF = 192
"""Side up to which a batch is factorised by torch.linalg."""

BATCH_ELEMENTS = 2**24
"""Matrices are stacked up to this many elements (128 MiB in float64), so that a large model is never copied whole."""


class Spectrum(NamedTuple):
    """What `spectra` says about one matrix with singular values s, of which there are r = min(rows, cols).

    A zero matrix has norms 0 and the rest NaN; a matrix with a NaN or an infinity is NaN in everything.
    """

    spectral_norm: float
    """max s."""
    frobenius_norm: float
    """sqrt(sum s^2)."""
    stable_rank: float
    """sum s^2 / max s^2, between 1 and r."""
    condition_number: float
    """max s / min s; infinity where min s is lost in rounding."""
    orthogonality_error: float
    """|| X X^T / c - I ||_F / sqrt(r) with c = mean s^2 (X^T X for a tall matrix): 0 for a multiple of a
    semi-orthogonal matrix, sqrt(r - 1) for rank one. It is the standard deviation of s^2 over its mean."""


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values [..., min(rows, cols)], descending, of [..., rows, cols]; in float32, or float64 for float64."""
    return torch.linalg.svdvals(matrix.to(torch.float64 if matrix.dtype == torch.float64 else torch.float32))


def spectral_norm(weight: Tensor) -> float:
    """Largest singular value of a weight, exactly; dimensions after the first count as one, a vector as a column."""
    return float(singular_values(weight.detach().reshape(weight.shape[0], -1)).max())


def condition_number(values: Tensor) -> Tensor:
    """max |value| / min |value| over the last dimension, of singular values or of eigenvalues of either sign.

    Infinity if one is 0, NaN if all are.
    """
    magnitudes = values.abs()
    return magnitudes.amax(-1) / magnitudes.amin(-1)


@torch.no_grad()
def spectra(matrices: Sequence[Tensor], method: Method | None = None) -> list[Spectrum]:
    """The spectrum of every matrix, batched over equal shapes; waits for the device once a batch.

    Args:
        matrices: 2-D, real floating, any shapes and devices.
        method: "svd": all singular values, in float64; of matrices in another dtype as roots of the Gram matrix's
            eigenvalues. Those below max(rows, cols) * eps times the largest, eps of float32 (of float64 for float64),
            count as 0. "gram": products and a Cholesky factorisation in float64. Norm and
            orthogonality error are exact; the spectral norm may be too small by a factor of r^(1/1024) (0.7 % at
            r = 1000) and the condition number by r^(1/512) (1.4 %), when many values crowd at the end of the spectrum;
            a condition number above 1e6 is infinity. Default: "svd" for matrices on the CPU, "gram" elsewhere, where
            decompositions are slow.

    Raises:
        TypeError, ValueError: something that is no matrix or has no element, by index; an unknown method.
    """
    if method is not None and method not in METHODS:
        raise ValueError(f"method must be None or one of {', '.join(METHODS)}, got {method!r}")
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, matrix in enumerate(matrices):
        if not matrix.is_floating_point():
            raise TypeError(f"matrices must be real floating point, got {matrix.dtype} at index {i}")
        if matrix.ndim != 2 or matrix.numel() == 0:
            raise ValueError(f"matrices must be 2-D with elements, got {list(matrix.shape)} at index {i}")
        groups.setdefault((matrix.device, matrix.dtype, *sorted(matrix.shape)), []).append(i)
    found: dict[int, Spectrum] = {}
    for indices in groups.values():
        first = matrices[indices[0]]
        chosen = method or ("svd" if first.device.type == "cpu" else "gram")
        measure = _by_svd if chosen == "svd" else _by_gram
        count = max(1, BATCH_ELEMENTS // first.numel())
        for start in range(0, len(indices), count):
            part = indices[start : start + count]
            wide = [m if m.shape[0] <= m.shape[1] else m.mT for m in (matrices[i] for i in part)]
            table = _measured(torch.stack(wide), measure)
            found |= {i: Spectrum(*row) for i, row in zip(part, table.tolist(), strict=True)}
    return [found[i] for i in range(len(matrices))]


def _measured(batch: Tensor, measure: Measure) -> Tensor:
    """float64 [batch, 5], the fields of Spectrum; batch [batch, rows, cols] with rows <= cols."""
    work = batch.to(torch.float64)
    frobenius = torch.linalg.vector_norm(work, dim=(1, 2))
    known = frobenius.isfinite() & (frobenius > 0)
    # An identity in the place of what cannot be measured keeps the decompositions from raising.
    eye = torch.eye(*work.shape[1:], dtype=work.dtype, device=work.device)
    unit = torch.where(known[:, None, None], work / frobenius[:, None, None], eye)
    largest, condition, error = measure(unit, batch.dtype)
    columns = torch.stack([frobenius * largest, frobenius, largest**-2, condition, error], dim=1)
    zero = torch.tensor([0.0, 0.0, math.nan, math.nan, math.nan], dtype=torch.float64, device=batch.device)
    columns = torch.where((frobenius > 0)[:, None], columns, zero)
    return torch.where(frobenius.isfinite()[:, None], columns, math.nan)


def _by_svd(unit: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Largest singular value, condition number and orthogonality error of matrices with Frobenius norm 1."""
    exact = dtype == torch.float64
    # What squaring in float64 loses is less than float32 can hold, and the eigenvalues take a fifth (128 x 512) to nine
    # tenths (768 x 768) of the time of an SVD on a CPU.
    values = torch.linalg.svdvals(unit) if exact else torch.linalg.eigvalsh(unit @ unit.mT).flip(1).clamp_min(0).sqrt()
    noise = max(unit.shape[1:]) * torch.finfo(torch.float64 if exact else torch.float32).eps
    kept = torch.where(values > values[:, :1] * noise, values, 0.0)
    error = (unit.shape[1] * values.square() - 1).square().mean(1).sqrt()
    return values[:, 0], condition_number(kept), error


def _by_gram(unit: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    rows = unit.shape[1]
    gram = unit @ unit.mT
    eye = torch.eye(rows, dtype=gram.dtype, device=gram.device)
    error = torch.linalg.vector_norm(rows * gram - eye, dim=(1, 2)) / math.sqrt(rows)
    inverse_factor, definite = _inverse_cholesky(gram)
    inverse = inverse_factor.mT @ inverse_factor
    largest, largest_inverse = _largest_eigenvalue(torch.cat([gram, inverse])).chunk(2)
    condition = (largest * largest_inverse).sqrt()
    condition = torch.where(definite & (condition <= LARGEST_GRAM_CONDITION), condition, math.inf)
    return largest.sqrt(), condition, error


def _inverse_cholesky(positive: Tensor) -> tuple[Tensor, Tensor]:
    """L^-1 [batch, n, n] with L L^T = positive [batch, n, n], and whether each is positive definite [batch].

    By halves, so that nearly everything is products: batched factorisations of large matrices are slow on a GPU, and
    torch.cholesky_inverse goes matrix by matrix there. Of what is not positive definite the inverse means nothing.
    """
    n = positive.shape[-1]
    if n <= LEAF:
        eye = torch.eye(n, dtype=positive.dtype, device=positive.device)
        factor, failed = torch.linalg.cholesky_ex(positive)
        factor = torch.where((failed == 0)[:, None, None], factor, eye)
        return torch.linalg.solve_triangular(factor, eye, upper=False), failed == 0
    half = n // 2
    first, first_definite = _inverse_cholesky(positive[:, :half, :half])
    below = positive[:, half:, :half] @ first.mT  # the lower left block of L
    rest = torch.baddbmm(positive[:, half:, half:], below, below.mT, alpha=-1)
    last, last_definite = _inverse_cholesky(rest)
    inverse = torch.zeros_like(positive)
    inverse[:, :half, :half] = first
    inverse[:, half:, half:] = last
    inverse[:, half:, :half] = -last @ (below @ first)
    return inverse, first_definite & last_definite


def _largest_eigenvalue(positive: Tensor) -> Tensor:
    """A lower bound of the largest eigenvalue l of positive definite [batch, n, n], above l / n^(1/512).

    With p = 2^8, (sum l_i^2p / sum l_i^p)^(1/p) is a mean of eigenvalues that all but ignores the small ones.
    """
    power = positive
    log_scale = torch.zeros(len(positive), dtype=positive.dtype, device=positive.device)
    for squaring in range(SQUARINGS):
        if squaring % 4 == 0:  # between them l^16 > n^-8, far from underflow
            norm = torch.linalg.vector_norm(power, dim=(1, 2))
            power = power / norm[:, None, None]
            log_scale += norm.log()
        power = power @ power
        log_scale *= 2
    trace = power.diagonal(dim1=1, dim2=2).sum(1)
    log_mean = log_scale + power.square().sum((1, 2)).log() - trace.log()
    return (log_mean / 2**SQUARINGS).exp()
