"""Fits the coefficients of the squaring chain (muon_kernels/squaring.py) in float64 and prints them.

    python -m bench.fit_squaring                                # those that are shipped
    python -m bench.fit_squaring --squarings 4 4 --added all    # another chain

A stage is M_1 = x^2 / u^2, M_(j+1) = alpha M_j^2 + beta M_j + sum gamma_i M_i, x <- x (Q + delta) / u. The largest
distance from 1 over [start, 1] is minimised as a p-norm with growing p, by Levenberg-Marquardt from many starts at
once; `start` falls from rung to rung, then the margin for rounding grows. Deterministic on one machine.
"""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

import torch
from torch import Tensor

ADDED = {
    "none": lambda k: [[] for _ in range(k)],
    "second": lambda k: [[] for _ in range(k - 1)] + [[2]],
    "one": lambda k: [[]] + [[1] for _ in range(k - 2)] + [[2]],
    "all": lambda k: [list(range(1, j)) for j in range(1, k + 1)],
}
"""Which M_i each of k squares adds besides beta M_j: nothing; M_2 to Q; M_1 to all but the ends too; all there are."""

RUNGS = (0.01, 0.006, 0.004, 0.003, 0.0022, 0.0018, 0.0014, 0.0012)
STARTS, KEPT = 48, 6
INPUT_MARGIN, STAGE_MARGIN = 1.005, 1.25
"""How far rounding may carry a singular value past the largest of exact arithmetic: of the input, and of a stage."""


class Chain(NamedTuple):
    """Which squares a chain has and what they add; its parameters are one flat vector."""

    added: list[list[list[int]]]

    def start(self) -> Tensor:
        """u, the squares and delta of each stage: round numbers near the shipped ones, where the search begins."""
        values: list[float] = []
        for number, stage in enumerate(self.added):
            ends = (
                (1.0, [3.4, -3.7], [3.7, 3.8], [112.0, 200.0], 91.0)
                if number == 0
                else (2.1, [-1.1, 2.1], [3.2, -3.6], [14.7, 26.8], 15.7)
            )
            u, first, second, last, delta = ends
            gain = 2.0 ** (len(stage) - (5 if number == 0 else 4))
            values.append(u)
            for j, added in enumerate(stage):
                values += (
                    [gain * x for x in last] if j == len(stage) - 1 else (first, second, [3.2, 3.6], [2.2, 3.0])[j]
                )
                values += [0.0] * len(added)
            values.append(gain * delta)
        return torch.tensor(values, dtype=torch.float64)

    def stages(self, parameters: Tensor) -> list[tuple[Tensor, list[tuple[Tensor, Tensor, list[Tensor]]], Tensor]]:
        """The vector cut into (u, [(alpha, beta, gammas)], delta)."""
        values = iter(parameters)
        return [
            (
                next(values),
                [(next(values), next(values), [next(values) for _ in added]) for added in stage],
                next(values),
            )
            for stage in self.added
        ]

    def map(self, parameters: Tensor, x: Tensor, margin: float = 1.0) -> Tensor:
        """What the chain makes of singular values x; every stage but the first sees them `margin` times larger."""
        for number, (u, squares, delta) in enumerate(self.stages(parameters)):
            x = x * (margin if number else 1.0) / u
            ms = [x * x]
            for (alpha, beta, gammas), added in zip(squares, self.added[number], strict=True):
                ms.append(
                    ms[-1] * (alpha * ms[-1] + beta) + sum(g * ms[i - 1] for g, i in zip(gammas, added, strict=True))
                )
            x = x * (ms[-1] + delta)
        return x

    def slope(self, parameters: Tensor) -> float:
        """The factor of the smallest singular values."""
        tiny = torch.tensor([1e-9], dtype=torch.float64)
        return float(self.map(parameters, tiny) / tiny)


def fit(chain: Chain, start: float, seed: int = 0) -> Tensor:
    """Parameters of the best chain found for singular values in [start, 1]."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=torch.float64, generator=generator)

    found = chain.start().expand(STARTS, -1)
    found = found * (1 + 0.25 * torch.linspace(0, 1, STARTS, dtype=torch.float64)[:, None] * noise(found))
    for number, rung in enumerate([rung for rung in RUNGS if rung > start] + [start]):
        x = torch.cat([torch.logspace(math.log10(rung), 0, 300), torch.linspace(rung, 1, 150)]).double()
        norms, iterations = ((2, 4, 10), 60) if number == 0 else ((4, 10), 25)
        found, distance = minimise(chain, found, [(x, 1.0)], norms, iterations)
        rough = found[distance.argsort()[:KEPT]]
        fine, _ = minimise(chain, rough, [(x, 1.0)], (16, 48), 25)
        found = torch.cat([rough, fine])
        found = torch.cat([found, *(found * (1 + 0.03 * noise(found)) for _ in range(2))])
    # Oscillations crowd at the upper end: a grid that is even there lets a spike through.
    upper = INPUT_MARGIN * torch.linspace(0, math.pi / 2, 480).double()[:-1].cos()
    x = torch.cat([torch.logspace(math.log10(start), 0, 300).double(), upper[upper > start]])
    found = rough
    for margin in (1.0, 1.02, 1.05, STAGE_MARGIN):
        points = [(x, 1.0), (x, margin)]
        found, _ = minimise(chain, found, points, (4, 10), 15)
    found, distance = minimise(chain, found, points, (16, 48, 150), 30)
    return found[distance.argmin()]


def minimise(
    chain: Chain, parameters: Tensor, points: list[tuple[Tensor, float]], norms: tuple[int, ...], iterations: int
) -> tuple[Tensor, Tensor]:
    """Levenberg-Marquardt on the p-norm of map(x, margin) - 1 over all points, for a batch of parameter vectors.

    Returns them and their largest distances.
    """

    def residuals(vector: Tensor) -> Tensor:
        return torch.cat([chain.map(vector, x, margin) for x, margin in points]) - 1

    evaluate = torch.func.vmap(residuals)
    jacobian = torch.func.vmap(torch.func.jacfwd(residuals))
    damping = torch.full((len(parameters),), 1e-2, dtype=torch.float64)
    error = evaluate(parameters)
    for p in norms:
        for _ in range(iterations):
            slopes = jacobian(parameters)
            weighted = slopes * ((error / error.abs().amax(1, keepdim=True)).abs() ** (p - 2))[..., None]
            curvature = (p - 1) * weighted.mT @ slopes
            diagonal = curvature.diagonal(dim1=1, dim2=2)
            damped = curvature + torch.diag_embed(
                diagonal * damping[:, None] + 1e-14 * diagonal.amax(1, keepdim=True) + 1e-300
            )
            step = torch.linalg.solve_ex(damped, (weighted.mT @ error[..., None])[..., 0])[0].nan_to_num(0, 0, 0)
            trial = evaluate(parameters - step)
            better = _norm(trial, p) < _norm(error, p)
            parameters = torch.where(better[:, None], parameters - step, parameters)
            error = torch.where(better[:, None], trial, error)
            damping = torch.where(better, 0.3 * damping, 4 * damping).clamp(1e-12, 1e8)
        damping = damping.clamp(max=0.1)
    return parameters, error.abs().amax(1).nan_to_num(torch.inf)


def _norm(error: Tensor, p: int) -> Tensor:
    return torch.logsumexp(p * error.abs().clamp(min=1e-300).log(), 1) / p


def scaled(chain: Chain, parameters: Tensor) -> list[tuple[float, list[tuple[float, float, list[float]]], float]]:
    """(1 / u^2, [(alpha, beta, gammas)], delta) such that every M_j stays in [-1, 1] and X <- QX needs no factor."""
    x = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    result = []
    for (u, squares, delta), stage in zip(chain.stages(parameters), chain.added, strict=True):
        largest = x.max()
        ms, factors, out = [(x / largest).square()], [(largest / u) ** 2], []
        for j, ((alpha, beta, gammas), added) in enumerate(zip(squares, stage, strict=True)):
            alpha, beta = alpha * factors[-1] ** 2, beta * factors[-1]
            gammas = [g * factors[i - 1] for g, i in zip(gammas, added, strict=True)]
            m = ms[-1] * (alpha * ms[-1] + beta) + sum(g * ms[i - 1] for g, i in zip(gammas, added, strict=True))
            factor = u if j == len(stage) - 1 else m.abs().max()
            factors.append(factor)
            ms.append(m / factor)
            out.append((float(alpha / factor), float(beta / factor), [float(g / factor) for g in gammas]))
        result.append((float(largest**-2), out, float(delta / u)))
        x = x * (ms[-1] + delta / u)
    return result


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--squarings", type=int, nargs="+", default=[5, 4], help="a number a stage, Q's included")
    parser.add_argument("--added", choices=ADDED, default="second", help="matrices added to the squares")
    parser.add_argument("--start", type=float, default=0.0014, help="lower end of the interval")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chain = Chain([ADDED[options.added](k) for k in options.squarings])
    found = fit(chain, options.start)
    dense = torch.logspace(math.log10(options.start), 0, 200_000).double()
    values = chain.map(found, dense)
    print(f"[{options.start}, 1] -> {values.min():.4f}..{values.max():.4f}, slope {chain.slope(found):.1f}")
    points = (1e-4, 1e-3, 2e-3, 0.01, 0.1, 0.5, 1.0)
    values = chain.map(found, torch.tensor(points).double())
    print("  " + ", ".join(f"{x:g} -> {y:.6f}" for x, y in zip(points, values.tolist(), strict=True)))
    for stage in scaled(chain, found):
        print(f"  {stage}")


if __name__ == "__main__":
    main()
