"""Accuracy of the squaring chain beside the plain chains, over the spectra that tell them apart.

    python -m bench.squaring_accuracy --side 1024

First as computed in 16 bit. Each cell: smallest-largest singular value of the result, ||OO^T - I||_F / sqrt(m), cosine
with the polar factor. Then the distance and the cosine that polynomials come to in exact arithmetic on singular values
divided by their Frobenius or their Schatten-4 norm, which tells what the norm gains from what a polynomial does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from muon_kernels import orthogonalize
from muon_kernels.coefficients import resolve_coefficients
from muon_kernels.squaring import schatten4, squaring_map

Spectrum = Callable[[int], Tensor]


def power_law(exponent: float, n: int) -> Tensor:
    """i^-exponent."""
    return torch.arange(1, n + 1, dtype=torch.float64) ** -exponent


SPECTRA: dict[str, Spectrum] = {
    "1/i": partial(power_law, 1.0),
    "condition 1e3": lambda n: torch.logspace(0, -3, n, dtype=torch.float64),
    "half at 1e-2": lambda n: torch.where(torch.arange(n) < n // 2, 1.0, 1e-2).double(),
}


def normal(rows: int, cols: int, generator: torch.Generator) -> Tensor:
    """Elements of a standard normal distribution."""
    return torch.randn(rows, cols, dtype=torch.float64, generator=generator)


def problems(side: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Matrices and their polar factors."""
    generator = torch.Generator().manual_seed(0)
    result = {}
    for rows, cols in ((side, side), (side // 2, 2 * side)):
        for name, spectrum in SPECTRA.items():
            u = torch.linalg.qr(normal(rows, rows, generator)).Q
            vh = torch.linalg.qr(normal(cols, rows, generator)).Q.mT
            result[f"{rows}x{cols} {name}"] = (u * spectrum(rows) @ vh, u @ vh)
        gaussian = normal(rows, cols, generator)
        u, _, vh = torch.linalg.svd(gaussian, full_matrices=False)
        result[f"{rows}x{cols} Gaussian"] = (gaussian, u @ vh)
    return result


def spectra(side: int) -> dict[str, Tensor]:
    """Singular values for exact arithmetic."""
    generator = torch.Generator().manual_seed(0)
    found = {**SPECTRA, "i^-0.5": partial(power_law, 0.5), "i^-1.5": partial(power_law, 1.5)}
    gaussians = {f"Gaussian 1:{s}": torch.linalg.svdvals(normal(side, s * side, generator)) for s in (1, 4)}
    return {name: spectrum(side) for name, spectrum in found.items()} | gaussians


def distances(values: Tensor) -> str:
    """||OO^T - I||_F / sqrt(m) and cosine with the polar factor, of the singular values of O."""
    distance = (values.square() - 1).square().mean().sqrt()
    return f"{distance:.3f}, {values.mean() / values.square().mean().sqrt():.4f}"


def figures(out: Tensor, polar: Tensor) -> str:
    """What a cell of the first table says."""
    out = out.double()
    values = torch.linalg.svdvals(out)
    distance = (values.square() - 1).square().mean().sqrt()
    return (
        f"{values.min():.2f}-{values.max():.2f}, {distance:.3f}, {(out * polar).sum() / out.norm() / polar.norm():.4f}"
    )


def newton_schulz(preset: str, x: Tensor) -> Tensor:
    """What five steps of a preset do to singular values."""
    for a, b, c in resolve_coefficients(preset, 5):
        x = x * (a + x * x * (b + x * x * c))
    return x


def print_table(corner: str, columns: list[str], rows: dict[str, list[Callable[[], str]]]) -> None:
    """Cells are computed as they are needed, and a row is printed once it is there."""
    print(f"| {corner} | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cell() for cell in cells)} |", flush=True)
    print()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=1024)
    options = parser.parse_args()
    torch.set_num_threads(1)
    half, brain = torch.float16, torch.bfloat16
    polar_express = "polar_express_1.05"
    chains = {
        "standard, original, bf16": partial(orthogonalize, method="standard", compute_dtype=brain),
        f"standard, {polar_express}, bf16": partial(
            orthogonalize, method="standard", ns_coefficients=polar_express, compute_dtype=brain
        ),
        f"Gram, {polar_express}, fp16": partial(
            orthogonalize, method="gram", ns_coefficients=polar_express, compute_dtype=half
        ),
        "squaring, fp16": partial(orthogonalize, method="squaring", compute_dtype=half),
        "squaring, bf16": partial(orthogonalize, method="squaring", compute_dtype=brain),
    }
    cases = problems(options.side)
    cells = {
        name: [partial(lambda chain, x, polar: figures(chain(x), polar), chain, *case) for case in cases.values()]
        for name, chain in chains.items()
    }
    print_table("chain", list(cases), cells)

    polynomials = {
        "original": partial(newton_schulz, "original"),
        polar_express: partial(newton_schulz, polar_express),
        "squaring": squaring_map,
    }
    norms = {"Frobenius": torch.linalg.vector_norm, "Schatten-4": schatten4}
    singular_values = spectra(options.side)
    cells = {
        f"{name}, {norm}": [
            partial(lambda f, divisor, s: distances(f(s / divisor(s))), polynomial, divisor, s)
            for s in singular_values.values()
        ]
        for name, polynomial in polynomials.items()
        for norm, divisor in norms.items()
    }
    print_table("polynomial, norm", list(singular_values), cells)


if __name__ == "__main__":
    main()
