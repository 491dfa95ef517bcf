"""Accuracy of the squaring chain beside the plain chains, in 16 bit, over the spectra that tell them apart.

    python -m bench.squaring_accuracy --side 1024

Each cell: smallest-largest singular value of the result, ||OO^T - I||_F / sqrt(m), cosine with the polar factor.
"bound": divided by 1.005 times Wolkowicz and Styan's bound of the spectral norm (Linear Algebra Appl. 29, 1980) instead
of the Frobenius norm; no backend does that yet, so it is emulated, and so are chains that are not shipped: every stored
matrix is rounded to 16 bit, products accumulate in float32.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor

from muon_kernels import orthogonalize
from muon_kernels.squaring import STAGES

Squares = list[tuple[float, float, dict[int, float]]]
Stages = list[tuple[float, Squares, float]]
"""(gram, [(alpha, beta, {i: gamma})], delta) a stage: M_(j+1) = alpha M_j^2 + beta M_j + sum gamma M_i."""

SHIPPED: Stages = [
    (
        stage.gram,
        [
            (alpha, beta, {2: stage.gamma} if j == len(stage.squares) else {})
            for j, (alpha, beta) in enumerate(stage.squares, start=1)
        ],
        stage.delta,
    )
    for stage in STAGES
]
"""What muon_kernels computes."""

FIRST_44: Stages = [
    (
        1.0,
        [
            (3.6908723, -3.8423286, {}),
            (3.3445257, 3.7054588, {1: 0.15387185}),
            (2.8127494, 3.3914665, {1: 0.17366481, 2: -0.063935243}),
            (91.42945, 132.74563, {1: -0.14513372, 2: 0.8389876, 3: 0.55187609}),
        ],
        49.572165,
    ),
    (
        1.919915**-2,
        [
            (2.8345679, -3.367235, {}),
            (3.1838448, 3.629365, {1: 0.17004008}),
            (2.2720965, 2.9897683, {1: -0.038600747, 2: -0.018622935}),
            (
                19.980525 / 1.919915,
                34.199413 / 1.919915,
                {1: -1.7220268 / 1.919915, 2: 2.7445499 / 1.919915, 3: 1.6133473 / 1.919915},
            ),
        ],
        20.242546 / 1.919915,
    ),
]
"""The first fit: four squares a stage, up to three added matrices a product, band 0.875-1.125 from 0.0022 on."""


def emulate(x: Tensor, stages: Stages, dtype: torch.dtype, *, bound: bool) -> Tensor:
    """The chain of `muon_kernels.squaring` on a float64 [m, n], m <= n, every stored matrix rounded to `dtype`."""

    def stored(y: Tensor) -> Tensor:
        return y.to(dtype).float()

    def mirrored(y: Tensor) -> Tensor:
        lower = stored(y).tril()
        return lower + lower.tril(-1).mT

    side = x.shape[0]
    eye = torch.eye(side)
    x = stored((x / x.norm()).float())
    for number, (gram, squares, delta) in enumerate(stages):
        m = x @ x.mT
        factor = 1.0
        if bound and number == 0:
            mean, square = m.trace() / side, m.square().sum() / side
            factor = float(1.005**-2 / (mean + math.sqrt(side - 1) * (square - mean**2).clamp(min=0).sqrt()))
        shifts = [b / (2 * a) if j >= 3 - number else 0.0 for j, (a, b, _) in enumerate(squares, start=1)] + [delta]
        ms = [mirrored(gram * factor * m + shifts[0] * eye)]
        for j, (alpha, beta, gammas) in enumerate(squares):
            out = alpha * ms[-1] @ ms[-1] + (shifts[j + 1] - alpha * shifts[j] ** 2) * eye
            if not shifts[j]:
                out += beta * ms[-1]
            for i, gamma in gammas.items():
                out += gamma * (ms[i - 1] - shifts[i - 1] * eye)
            ms.append(mirrored(out * math.sqrt(factor) if j + 1 == len(squares) else out))
        x = stored(ms[-1] @ x)
    return x


def problems(side: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Matrices and their polar factors."""
    generator = torch.Generator().manual_seed(0)

    def normal(rows: int, cols: int) -> Tensor:
        return torch.randn(rows, cols, dtype=torch.float64, generator=generator)

    spectra: dict[str, Callable[[int], Tensor]] = {
        "1/i": lambda n: 1 / torch.arange(1, n + 1, dtype=torch.float64),
        "condition 1e3": lambda n: torch.logspace(0, -3, n, dtype=torch.float64),
        "half at 1e-2": lambda n: torch.where(torch.arange(n) < n // 2, 1.0, 1e-2).double(),
    }
    result = {}
    for rows, cols in ((side, side), (side // 2, 2 * side)):
        for name, spectrum in spectra.items():
            u, vh = torch.linalg.qr(normal(rows, rows)).Q, torch.linalg.qr(normal(cols, rows)).Q.mT
            result[f"{rows}x{cols} {name}"] = (u * spectrum(rows) @ vh, u @ vh)
        gaussian = normal(rows, cols)
        u, _, vh = torch.linalg.svd(gaussian, full_matrices=False)
        result[f"{rows}x{cols} Gaussian"] = (gaussian, u @ vh)
    return result


def figures(out: Tensor, polar: Tensor) -> str:
    """What a cell says."""
    out = out.double()
    values = torch.linalg.svdvals(out)
    distance = (values.square() - 1).norm() / math.sqrt(len(values))
    return (
        f"{values.min():.2f}-{values.max():.2f}, {distance:.3f}, {(out * polar).sum() / out.norm() / polar.norm():.4f}"
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=1024)
    options = parser.parse_args()
    torch.set_num_threads(1)
    half, brain = torch.float16, torch.bfloat16
    chains: dict[str, Callable[[Tensor], Tensor]] = {}
    for method, preset, dtype in (
        ("standard", "original", brain),
        ("standard", "polar_express_1.05", brain),
        ("standard", "polar_express_1.05", half),
        ("gram", "polar_express_1.05", half),
    ):
        chains[f"{method}, {preset}, {dtype}"] = lambda x, method=method, preset=preset, dtype=dtype: orthogonalize(
            x, method=method, ns_coefficients=preset, compute_dtype=dtype
        )
    for dtype in (half, brain):
        chains[f"squaring, {dtype}"] = lambda x, dtype=dtype: orthogonalize(x, method="squaring", compute_dtype=dtype)
    for name, stages in (("squaring", SHIPPED), ("first fit", FIRST_44)):
        for bound in (False, True):
            chains[f"emulated: {name}, {half}{', bound' * bound}"] = lambda x, stages=stages, bound=bound: emulate(
                x, stages, half, bound=bound
            )
    cases = problems(options.side)
    print(f"| chain | {' | '.join(cases)} |")
    print("|---" * (len(cases) + 1) + "|")
    for name, chain in chains.items():
        print(f"| {name} | {' | '.join(figures(chain(x), polar) for x, polar in cases.values())} |", flush=True)


if __name__ == "__main__":
    main()
