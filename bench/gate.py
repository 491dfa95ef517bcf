"""No gate, no number: what a provider computes is compared with what it promises to compute.

The promise is a polynomial. It is evaluated in float64 (the truth) and in bfloat16 in plain torch (the yardstick);
a result passes if its error, in norm and in maximum, is at most twice the yardstick's plus a floor and if
it is as orthogonal as the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from muon_kernels.coefficients import Row
from muon_kernels.squaring import Stage

FACTOR = 2.0
FLOOR = 0.01
ORTHOGONALITY_MARGIN = 0.1
POLAR_TOLERANCE = 1e-3
CHUNK_ELEMENTS = 2**25


class GateRefused(AssertionError):
    """A result that is not what its provider promises."""


@dataclass(frozen=True)
class Promise:
    """The function of its input that a provider claims to compute.

    rows: (a, b, c) of every step.
    stages: those of a squaring chain, which follow.
    norm_factor: the norm is taken this much larger.
    rescale: "frobenius", "schatten4", the root of the Gram matrix's Frobenius norm, or "aol" for rows divided by the
        root of their Gram matrix's absolute row sums.
    """

    rows: tuple[Row, ...]
    norm_factor: float = 1.0
    rescale: Literal["frobenius", "schatten4", "aol"] = "frobenius"
    stages: tuple[Stage, ...] = ()

    def evaluate(self, g: Tensor, dtype: torch.dtype) -> Tensor:
        """The promised result for [batch, rows, cols] in plain torch: every product and sum rounded to `dtype`."""
        wide = g.shape[-2] <= g.shape[-1]
        x = (g if wide else g.mT).to(torch.float64 if dtype == torch.float64 else torch.float32)
        if self.rescale == "aol":
            x = x * (x @ x.mT).abs().sum(-1, keepdim=True).rsqrt()
        else:
            norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
            if self.rescale == "schatten4":
                exact = (x / norm).double()
                norm = norm * torch.linalg.vector_norm(exact @ exact.mT, dim=(-2, -1), keepdim=True).sqrt().to(x.dtype)
            x = x / (norm * self.norm_factor)
        x = x.to(dtype)
        for a, b, c in self.rows:
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        for stage in self.stages:
            m = second = stage.gram * (x @ x.mT)
            for j, (alpha, beta) in enumerate(stage.squares):
                m = alpha * (m @ m) + beta * m
                second = m if j == 0 else second
            x = stage.delta * x + (m + stage.gamma * second) @ x
        return x if wide else x.mT


@dataclass(frozen=True)
class Accuracy:
    """Worst matrix of a result. Errors are relative to the truth's norm, the largest ones to its root mean square."""

    error: float
    max_error: float
    orthogonality: float
    yardstick_error: float
    yardstick_max_error: float
    true_orthogonality: float

    def as_info(self) -> dict[str, float]:
        """For the results file."""
        return asdict(self)


class Judge:
    """Checks many providers' results for one input; a truth is computed once for each promise."""

    def __init__(self, g: Tensor) -> None:
        self._g = g
        self._chunk = max(1, CHUNK_ELEMENTS // g[0].numel())
        self._known: dict[Promise, tuple[Tensor, Accuracy]] = {}

    def check(self, result: Tensor | Sequence[Tensor], promise: Promise | None) -> Accuracy:
        """The accuracy of a result.

        Args:
            result: [batch, rows, cols], or that many matrices.
            promise: None stands for the polar factor.

        Raises:
            GateRefused: wrong shape, non-finite elements, or further from the promise than allowed.
        """
        out = result if isinstance(result, Tensor) else torch.stack(list(result))
        if out.shape != self._g.shape:
            raise GateRefused(f"shape {list(out.shape)} instead of {list(self._g.shape)}")
        if not bool(out.isfinite().all()):
            raise GateRefused("non-finite elements")
        if promise is None:
            return self._check_polar(out)
        truth, yardstick = self._truth(promise)
        found = self._compare(out, truth)
        accuracy = Accuracy(
            *found, yardstick.error, yardstick.max_error, true_orthogonality=yardstick.true_orthogonality
        )
        demand("error", accuracy.error, FACTOR * yardstick.error + FLOOR)
        demand("largest error", accuracy.max_error, FACTOR * yardstick.max_error + FLOOR)
        demand("orthogonality", accuracy.orthogonality, yardstick.true_orthogonality + ORTHOGONALITY_MARGIN)
        return accuracy

    def _truth(self, promise: Promise) -> tuple[Tensor, Accuracy]:
        if promise not in self._known:
            chunks = self._g.split(self._chunk)
            truth = torch.cat([promise.evaluate(g, torch.float64).float() for g in chunks])
            plain = torch.cat([promise.evaluate(g, torch.bfloat16) for g in chunks])
            own = orthogonality(truth)
            self._known[promise] = truth, Accuracy(*self._compare(plain, truth), 0.0, 0.0, own)
        return self._known[promise]

    def _compare(self, out: Tensor, truth: Tensor) -> tuple[float, float, float]:
        errors, largest = [], []
        for x, y in zip(out.split(self._chunk), truth.split(self._chunk), strict=True):
            difference, norm = x.double() - y.double(), torch.linalg.vector_norm(y.double(), dim=(-2, -1))
            errors.append((torch.linalg.vector_norm(difference, dim=(-2, -1)) / norm).max())
            rms = norm / y[0].numel() ** 0.5
            largest.append((difference.abs().amax(dim=(-2, -1)) / rms).max())
        return float(torch.stack(errors).max()), float(torch.stack(largest).max()), orthogonality(out)

    def _check_polar(self, out: Tensor) -> Accuracy:
        """Orthonormal O, O G^T symmetric, and its trace the sum of G's singular values: then O is the polar factor."""
        g, o = (x if x.shape[-2] <= x.shape[-1] else x.mT for x in (self._g.double(), out.double()))
        product = o @ g.mT
        asymmetry = float((product - product.mT).norm() / product.norm())
        nuclear = torch.linalg.eigvalsh(g @ g.mT).clamp(min=0).sqrt().sum(-1)
        shortfall = float(((nuclear - product.diagonal(dim1=-2, dim2=-1).sum(-1)) / nuclear).abs().max())
        distance = orthogonality(out)
        for name, value in (("orthogonality", distance), ("asymmetry", asymmetry), ("trace", shortfall)):
            demand(name, value, POLAR_TOLERANCE)
        return Accuracy(max(asymmetry, shortfall), 0.0, distance, 0.0, 0.0, 0.0)


def orthogonality(o: Tensor) -> float:
    """The largest of ||O O^T - I||_F / sqrt(m) over a batch, m the smaller extent."""
    worst = 0.0
    for x in o.split(max(1, CHUNK_ELEMENTS // o[0].numel())):
        wide = x.float() if x.shape[-2] <= x.shape[-1] else x.float().mT
        gram = wide @ wide.mT
        gram.diagonal(dim1=-2, dim2=-1).sub_(1)
        worst = max(worst, float(torch.linalg.vector_norm(gram, dim=(-2, -1)).max()) / wide.shape[-2] ** 0.5)
    return worst


def demand(name: str, value: float, limit: float) -> None:
    """GateRefused unless the value is a number within the limit."""
    if not value <= limit:
        raise GateRefused(f"{name} {value:.3g} is over its limit {limit:.3g}")
