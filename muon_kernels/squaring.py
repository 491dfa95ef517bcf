"""The squaring chain: X times a polynomial of its Gram matrix that is evaluated by repeated squaring, in two stages.

A quintic step buys degree 5 for three products; k squarings of a Gram matrix buy degree 2^(k + 1) + 1. With u > 0,

    M_1 = XX^T / u^2,   M_(j+1) = alpha M_j^2 + beta M_j,   Q = the last of them + gamma M_2 + delta I,   X <- QX.

Every product is symmetric and adds one matrix at most: where M_j is stored with the shift beta / 2 alpha that completes the
square, beta M_j costs nothing. Rounding a shift hides eigenvalues below it, which hurts where those still differ: in M_1
always, in M_2 unless float16 rounds it.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from torch import Tensor

from .program import Operand, ProgramBuilder

Number = TypeVar("Number", float, Tensor)


class Stage(NamedTuple):
    """The numbers above; `squares` are (alpha, beta) for M_2, M_3, ..., Q."""

    gram: float
    squares: tuple[tuple[float, float], ...]
    gamma: float
    delta: float


STAGES: tuple[Stage, ...] = (
    Stage(
        gram=1,
        squares=(
            (3.41813295, -3.69763868),
            (3.68631112, 3.83995371),
            (3.24885759, 3.60491752),
            (2.22746026, 2.98493568),
            (111.847573, 200.466464),
        ),
        gamma=1.1650533,
        delta=91.1164241,
    ),
    Stage(
        gram=0.22892032,
        squares=(
            (-1.09876787, 2.09644258),
            (3.19500384, -3.57491473),
            (1.81145232, 2.69180409),
            (7.02908774, 12.7976686),
        ),
        gamma=-1.27010303,
        delta=7.50106945,
    ),
)
"""Fitted together by bench/fit_squaring.py for matrices divided by their Frobenius norm: singular values from 0.0014 to 1
end within 1 ± 0.16, smaller ones are multiplied by up to 683."""


def squaring_map(x: Number) -> Number:
    """What the chain does to a singular value x, in exact arithmetic."""
    for stage in STAGES:
        ms = [stage.gram * x * x]
        for alpha, beta in stage.squares:
            ms.append(ms[-1] * (alpha * ms[-1] + beta))
        x = x * (ms[-1] + stage.gamma * ms[1] + stage.delta)
    return x


def squaring_chain(build: ProgramBuilder, x: Operand, spare: Operand, *, first_shifted: int) -> Operand:
    """X <- QX, once a stage; arguments and result are those of the chains in chain.py.

    first_shifted: M_j is stored with its shift from this j on, at least 2 and at most 3.
    """
    home = build.buffer(x.rows, x.rows)
    rest: list[Operand] = []  # scratch beyond what fits into the spare X
    for gram, squares, gamma, delta in STAGES:
        # The spare X is free until it takes QX. M_2 stays for Q; the others change places, so that Q is at home.
        inside = build.carve(spare, x.rows, 2)
        rest = rest or [build.buffer(x.rows, x.rows) for _ in range(2 - len(inside))]
        m, second = away, _ = inside + rest
        build.symm_gemm(x, x.mT, m, alpha=gram)
        shifts = [0.0] * (first_shifted - 1) + [beta / (2 * alpha) for alpha, beta in squares[first_shifted - 1 :]]
        for j, (alpha, beta) in enumerate(squares):
            out = second if j == 0 else home if (len(squares) - j) % 2 else away
            if j + 1 == len(squares):
                unit = delta - alpha * shifts[j] ** 2 - gamma * shifts[1]
                build.symm_gemm(m, m, home, alpha=alpha, c=second, beta=gamma, delta=unit)
            elif shifts[j]:
                build.symm_gemm(m, m, out, alpha=alpha, delta=shifts[j + 1] - alpha * shifts[j] ** 2)
            else:
                build.symm_gemm(m, m, out, alpha=alpha, c=m, beta=beta, delta=shifts[j + 1])
            m = out
        build.gemm_add(home, x, spare)
        x, spare = spare, x
    return x
