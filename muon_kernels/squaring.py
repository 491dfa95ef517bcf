"""The squaring chain: X times a polynomial of its Gram matrix that repeated squaring evaluates, in two stages.

A quintic step buys degree 5 for three products; k squares of a Gram matrix buy degree 2^(k + 1) + 1 for k + 2:

    M_1 = gram XX^T,   M_(j+1) = alpha M_j^2 + beta M_j,   Q = M_(k+1) + gamma M_2 + delta I,   X <- QX.

X is divided by its Schatten-4 norm first, the root of ||XX^T||_F, which bounds its largest singular value more tightly
than its Frobenius norm: the flatter the spectrum, the larger its singular values come in, up to the fourth root of
their number. The chain is given X divided by the Frobenius norm, and makes up for the rest once it has XX^T.

Every product of Gram matrices is symmetric, and each adds one matrix at most: where M_j is stored with the shift
beta / 2 alpha, which completes the square, beta M_j costs nothing. Rounding such an M_j drowns eigenvalues that are
small beside its shift, which matters where M_j still tells small ones apart: at the start, most in the first stage.
Shifts from M_2 and M_1 on would save two more additions, but then float16 errs up to 8.9 and bfloat16 up to 5.0 times
as much as with those of the last M_j alone, instead of 5.4 and 2.3 (on flat spectra; on others 3.4 instead of 2.2).
"""

from __future__ import annotations

import math
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
            (2.74920527, -3.31614551),
            (3.8050165, 3.9012903),
            (3.29952575, 3.63291935),
            (2.25912928, 3.00608003),
            (114.823126, 201.760709),
        ),
        gamma=1.0889545,
        delta=89.8857601,
        first_shifted=3,
    ),
    Stage(
        gram=0.222600715,
        squares=(
            (-0.75716658, 1.75716658),
            (2.49219382, -3.15733674),
            (2.25853878, 3.00568713),
            (7.6415727, 13.1458959),
        ),
        gamma=-1.26739714,
        delta=7.18842704,
        first_shifted=2,
    ),
)
"""Fitted together (bench/fit_squaring.py) for matrices divided by their Schatten-4 norm: singular values from 0.0014 to
1 end within 1 ± 0.189, smaller ones are multiplied by up to 646."""


def squaring_map(x: Number) -> Number:
    """What the chain does to a singular value x of a matrix with Schatten-4 norm 1, in exact arithmetic."""
    for stage in STAGES:
        ms = [stage.gram * x * x]
        for alpha, beta in stage.squares:
            ms.append(ms[-1] * (alpha * ms[-1] + beta))
        x = x * (ms[-1] + stage.gamma * ms[1] + stage.delta)
    return x


def schatten4(values: Tensor) -> Tensor:
    """(sum of x^4)^(1/4) over the last dimension of singular values."""
    return values.square().square().sum(-1).sqrt().sqrt()


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
        # The first stage divides X by its Schatten-4 norm: M_1, by the norm's square, where M_2 is made of it, and QX
        # where Q is. Until then R is kept larger by a power of two: its elements may be too small for float16.
        first = stage == 0
        lifted = 2.0 ** round(math.log2(x.rows) / 2) if first else 1.0
        build.symm_gemm(x, x.mT, away, alpha=lifted * gram, delta=shifts[0])
        norms = build.gram_norms(away) if first else None
        m = away
        for j, (alpha, beta) in enumerate(squares[:-1]):
            out = second if j == 0 else home if (len(squares) - j) % 2 else away
            unit = shifts[j + 1] - alpha * shifts[j] ** 2
            lift, gained = (lifted, norms) if j == 0 else (1.0, None)
            build.symm_gemm(
                m,
                m,
                out,
                alpha=alpha / lift**2,
                c=None if shifts[j] else m,
                beta=0.0 if shifts[j] else beta / lift,
                delta=unit,
                norms=gained,
                powers=(4, 2, 0) if gained else (0, 0, 0),
            )
            m = out
        alpha, shift = squares[-1][0], shifts[-1]
        unit = delta - alpha * shift**2 - gamma * shifts[1]
        powers = (1, 1, 1) if norms else (0, 0, 0)
        build.symm_gemm(m, m, home, alpha=alpha, c=second, beta=gamma, delta=unit, norms=norms, powers=powers)
        if stage + 1 < len(STAGES):
            build.gemm_add(home, x, spare)
            x, spare = spare, x
    return LastProduct(home, x, spare)
