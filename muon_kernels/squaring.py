"""The squaring chain: X times a polynomial of its Gram matrix that repeated squaring evaluates, in two stages.

A quintic step buys degree 5 for three products; k squares of a Gram matrix buy degree 2^(k + 1) + 1 for k + 2:

    M_1 = gram XX^T,   M_(j+1) = alpha M_j^2 + beta M_j,   Q = M_(k+1) + gamma M_2 + delta I,   X <- QX.

Every product of Gram matrices is symmetric, and each adds one matrix at most: where M_j is stored with the shift
beta / 2 alpha, which completes the square, beta M_j costs nothing. Rounding such an M_j drowns eigenvalues that are
small beside its shift, which matters where M_j still tells small ones apart: at the start, most in the first stage.
Shifts from M_2 and M_1 on would save two more additions, but then float16 errs up to 11 times as much as without any
shift, instead of up to 6 (on flat spectra; elsewhere 4).
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from torch import Tensor

from .chain import LastProduct
from .program import Operand, ProgramBuilder

Number = TypeVar("Number", float, Tensor)


class Stage(NamedTuple):
    """The numbers above.

    squares: (alpha, beta) of M_2, M_3, ...; those of M_(k+1) stand last.
    first_shifted: M_j is stored with its shift from this j on.
    """

    gram: float
    squares: tuple[tuple[float, float], ...]
    gamma: float
    delta: float
    first_shifted: int


STAGES: tuple[Stage, ...] = (
    Stage(
        gram=1,
        squares=(
            (3.50304845, -3.7432865),
            (3.78721376, 3.89215301),
            (3.25521767, 3.60844436),
            (2.22994416, 2.98659951),
            (114.33575, 204.274625),
        ),
        gamma=0.98766912,
        delta=92.3779398,
        first_shifted=3,
    ),
    Stage(
        gram=0.2304346,
        squares=(
            (1.11096773, -2.10804908),
            (3.18277806, 3.56806842),
            (1.49032064, 2.44157379),
            (-0.948925012, -1.94892501),
            (5.84424933, -13.1153575),
        ),
        gamma=1.29983383,
        delta=8.95348864,
        first_shifted=2,
    ),
)
"""Fitted together (bench/fit_squaring.py) for matrices divided by their Frobenius norm: singular values from 0.0012 to
1 end within 1 ± 0.144, smaller ones are multiplied by up to 827."""


def squaring_map(x: Number) -> Number:
    """What the chain does to a singular value x, in exact arithmetic."""
    for stage in STAGES:
        ms = [stage.gram * x * x]
        for alpha, beta in stage.squares:
            ms.append(ms[-1] * (alpha * ms[-1] + beta))
        x = x * (ms[-1] + stage.gamma * ms[1] + stage.delta)
    return x


def squaring_chain(build: ProgramBuilder, x: Operand, spare: Operand) -> LastProduct:
    """X <- QX, once a stage; arguments and result are those of the chains in chain.py."""
    home = build.buffer(x.rows, x.rows)
    rest: list[Operand] = []  # scratch beyond what fits into the spare X
    for stage, (gram, squares, gamma, delta, first_shifted) in enumerate(STAGES):
        # The spare X is free until it takes QX. M_2 stays for Q; the others change places, so that Q is at home.
        inside = build.carve(spare, x.rows, 2)
        rest = rest or [build.buffer(x.rows, x.rows) for _ in range(2 - len(inside))]
        away, second = inside + rest
        shifts = [beta / (2 * alpha) if j >= first_shifted else 0.0 for j, (alpha, beta) in enumerate(squares, start=1)]
        m = away
        build.symm_gemm(x, x.mT, m, alpha=gram, delta=shifts[0])
        for j, (alpha, beta) in enumerate(squares[:-1]):
            out = second if j == 0 else home if (len(squares) - j) % 2 else away
            unit = shifts[j + 1] - alpha * shifts[j] ** 2
            if shifts[j]:
                build.symm_gemm(m, m, out, alpha=alpha, delta=unit)
            else:
                build.symm_gemm(m, m, out, alpha=alpha, c=m, beta=beta, delta=unit)
            m = out
        alpha, shift = squares[-1][0], shifts[-1]
        unit = delta - alpha * shift**2 - gamma * shifts[1]
        build.symm_gemm(m, m, home, alpha=alpha, c=second, beta=gamma, delta=unit)
        if stage + 1 < len(STAGES):
            build.gemm_add(home, x, spare)
            x, spare = spare, x
    return LastProduct(home, x, spare)
