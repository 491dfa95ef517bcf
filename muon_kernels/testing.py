"""What tests and benchmarks share: spectra, poisoned outputs, and the rule that judges an error."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .coefficients import Row


def matrix_with_spectrum(rows: int, cols: int, sigma: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A float64 [rows, cols] with singular values `sigma` (as many as min(rows, cols)) and random singular vectors."""
    side = min(rows, cols)
    u, v = (torch.linalg.qr(torch.randn(n, side, dtype=torch.float64, generator=generator)).Q for n in (rows, cols))
    return (u * sigma.to(torch.float64)) @ v.mT


def _flat(n: int) -> Tensor:
    return torch.ones(n)


def _geometric(n: int) -> Tensor:
    return torch.logspace(0, -3, n)


def _power_law(n: int) -> Tensor:
    return 1 / torch.arange(1, n + 1)


def _low_rank_and_noise(n: int) -> Tensor:
    return torch.cat([torch.ones(max(1, n // 16)), torch.full((n - max(1, n // 16),), 1e-3)])


def _one_huge_value(n: int) -> Tensor:
    return torch.cat([torch.ones(1), torch.full((n - 1,), 1e-2)])


def _condition_1e7(n: int) -> Tensor:
    return torch.logspace(0, -7, n)


def _rank_deficient(n: int) -> Tensor:
    return (torch.arange(n) < (n + 1) // 2).float()


SPECTRA: dict[str, Callable[[int], Tensor]] = {
    "flat": _flat,
    "geometric": _geometric,
    "power_law": _power_law,
    "low_rank_and_noise": _low_rank_and_noise,
    "one_huge_value": _one_huge_value,
    "condition_1e7": _condition_1e7,
    "rank_deficient": _rank_deficient,
}
"""Hostile and friendly spectra: number of singular values -> the values, the largest one 1."""


def polynomial_oracle(matrix: Tensor, rows: tuple[Row, ...], divisor: float | None = None) -> Tensor:
    """The chain `rows` applied to the singular values of a float64 matrix divided by `divisor` (its Frobenius norm)."""
    u, s, vh = torch.linalg.svd(matrix.to(torch.float64), full_matrices=False)
    x = s / (torch.linalg.vector_norm(s) if divisor is None else divisor)
    for a, b, c in rows:
        x = x * (a + x * x * (b + x * x * c))
    return (u * x) @ vh


def poison(*tensors: Tensor) -> None:
    """Fills outputs with NaN, so that an element which a kernel does not write is seen."""
    for tensor in tensors:
        tensor.fill_(torch.nan)


def assert_error_ratio(
    actual: Tensor, plain: Tensor, oracle: Tensor, *, factor: float = 2.0, floor: float = 0.0
) -> None:
    """`actual` may err by `factor` times what plain torch errs in the same dtype, plus `floor`.

    Errors are measured against the float64 `oracle`, relative to its norm (and to its largest entry for the maximum).

    Raises:
        AssertionError: with both errors, when the norm or the maximum is exceeded or `actual` is not finite.
    """
    oracle = oracle.to(torch.float64)
    for name, norm in (("norm", torch.linalg.vector_norm), ("maximum", lambda x: x.abs().max())):
        scale = norm(oracle)
        error, allowed = (float(norm(x.to(torch.float64) - oracle) / scale) for x in (actual, plain))
        if not error <= factor * allowed + floor:
            raise AssertionError(
                f"{name} error {error:.3e} exceeds {factor} x {allowed:.3e} (plain torch) + {floor:.1e}"
            )
