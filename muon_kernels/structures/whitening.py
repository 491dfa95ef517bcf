"""Experimental: whitening a matrix inside a structure."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .base import Structure

SMALLEST_STEP = 2.0**-12
"""No descent at this step size means that rounding has taken over."""

EPSILON = torch.finfo(torch.float64).eps


class WhiteningDiverged(ArithmeticError):
    """No step, however small, brings the matrix closer to white."""


class Whitening(NamedTuple):
    """`update` O = G K [rows, cols] in G's dtype, and the structured `factor` K [cols, cols] in float64.

    `residual` is the largest absolute entry of P(O^T O) - I that is left after `steps` steps.
    """

    update: Tensor
    factor: Structure
    residual: float
    steps: int


@torch.no_grad()
def whiten(
    G: Tensor, structure: type[Structure], *, damping: float = 1e-6, tolerance: float = 1e-3, max_steps: int = 100
) -> Whitening:
    """O = G K with K in a structure and P(O^T O) = I, where P keeps what the structure holds. Experimental.

    K <- K T, T = I - step/2 (P(K^T H K) - I), from K = I / ||G||_F, with H = G^T G. Dense matrices give the polar
    factor U V^T by the cubic Newton-Schulz iteration, diagonal ones G with columns of norm 1, blocks the polar factor
    of each block of columns. ||O||_F = sqrt(cols) for every structure, if the columns are independent. It is SINGD's
    update (https://arxiv.org/abs/2312.05705) with its curvature replaced by G^T G.

    The step is 1 and is halved whenever it would not lower tr(K^T H K) / 2 - log|det K|, whose minimum is the solution:
    with the plain step of 1 Toeplitz structures often diverge. That costs a determinant a step, in float64, and reads
    it from the device: this is no replacement for `orthogonalize`.

    Args:
        G: [rows, cols], real floating; with fewer rows than columns most structures cannot become white.
        structure: a class of `muon_kernels.structures`.
        damping: H is G^T G + damping * ||G||_F^2 / cols * I, which bounds K where columns depend on each other; O is
            short in those directions, and the residual is that of H. 0 only for independent columns.
        tolerance: residual at which the iteration ends.
        max_steps: the iteration also ends here: look at `residual`. Toeplitz structures can need more than 300 for a
            matrix with one dominant singular value. On Gaussian matrices with 64 columns, at condition 1e3, with eight
            large values and at rank 8, the most that any structure took was 57.

    Raises:
        TypeError, ValueError: an argument out of its range, by name; G zero or not finite.
        WhiteningDiverged: K grows beyond what float64 resolves, or no step size lowers the objective although the
            residual is above the tolerance.
    """
    scale = _check(G, structure, damping, tolerance, max_steps)
    cols = G.shape[1]
    unit = G.to(torch.float64) / scale
    gram = unit.mT @ unit
    gram.diagonal().add_(damping / cols)
    eye = structure.eye(cols, torch.float64, G.device)
    factor, inner, step = eye, gram, 1.0
    rounding = 8 * cols * EPSILON
    for taken in range(max_steps + 1):
        excess = structure.from_dense(inner) - eye
        residual = float(excess.infinity_vector_norm())
        if residual <= tolerance or taken == max_steps:
            break
        where = f"at residual {residual:.3g}; raise damping (now {damping:g}) or tolerance (now {tolerance:g})"
        while True:
            change = eye - excess * (step / 2)
            candidate = factor @ change
            dense = candidate.to_dense()
            grown = dense.mT @ gram @ dense
            sign, log_determinant = torch.linalg.slogdet(change.to_dense())
            rise = float((grown.trace() - inner.trace()) / 2 - log_determinant) if sign > 0 else math.inf
            if rise < -rounding:
                break
            # Too small a change to be judged by the objective; next to the solution the residual falls as well.
            if rise <= rounding and float((structure.from_dense(grown) - eye).infinity_vector_norm()) < residual:
                break
            step /= 2
            if step < SMALLEST_STEP:
                raise WhiteningDiverged(f"{structure.__name__}: no step lowers the objective {where}")
        if float(candidate.frobenius_norm()) ** 2 * EPSILON > 1:
            raise WhiteningDiverged(f"{structure.__name__}: the columns of G depend on each other {where}")
        factor, inner = candidate, grown
    update = (unit @ factor.to_dense()).to(G.dtype)
    return Whitening(update, factor * (1 / scale), residual, taken)


def _check(G: Tensor, structure: Any, damping: float, tolerance: float, max_steps: int) -> float:
    """||G||_F of a matrix that can be whitened."""
    if not G.is_floating_point():
        raise TypeError(f"G must be real floating point, got {G.dtype}")
    if G.ndim != 2:
        raise ValueError(f"G must be a matrix, got shape {list(G.shape)}")
    if not (isinstance(structure, type) and issubclass(structure, Structure)):
        raise TypeError(f"structure must be a class of muon_kernels.structures, got {structure!r}")
    for name, value in (("damping", damping), ("tolerance", tolerance)):
        if not 0.0 <= value < math.inf:
            raise ValueError(f"{name} must be >= 0 and finite, got {value}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be >= 1, got {max_steps}")
    scale = float(torch.linalg.vector_norm(G, dtype=torch.float64))
    if not 0.0 < scale < math.inf:
        raise ValueError(f"G must be finite and not zero, got Frobenius norm {scale}")
    return scale
