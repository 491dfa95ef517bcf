"""The Newton-Schulz chains, written once against a ProgramBuilder; they know no backend.

Every function takes a wide matrix (rows <= cols; a tall one comes in transposed), already normalised, and `spare`,
scratch of the same shape. Both are overwritten. The result comes as its last product, which is not in the program yet:
who needs it decides where to.

With A = XX^T a step multiplies X by P = aI + bA + cA^2. Textbooks add aX in full precision. In float16 P is formed with
its term aI, in the standard chain as a completed square, cS^2 + (a - b^2 / 4c) I with S = A + (b / 2c) I: then products
add multiples of the identity instead of matrices, which costs nothing. The error over the zoo of spectra, three presets
and two shapes is 0.5 to 1.7 times the textbook's, and 2.0 times on flat spectra, where it is least. In float32 it would
be up to 2.7 times, and in bfloat16 three times on flat spectra, where all rounding errors of the diagonal agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .coefficients import Row
from .program import Operand, ProgramBuilder

RESTART_STEP = 2
"""The Gram chain folds Q into X and rebuilds R before this step (counted from 0): in 16 bit, rounding gives R small
negative eigenvalues that grow without it. One restart before the third step is the choice of Zhang, Amsel, Chen and
Dao (gram-newton-schulz)."""

LARGEST_SHIFT = 8.0
"""Of |b / 2c|: the completed square loses as many digits as b^2 / 4c has more than a. Every preset stays below 3."""


class LastProduct(NamedTuple):
    """The result of a chain: factor times x, or x itself. `spare` is free."""

    factor: Operand | None
    x: Operand
    spare: Operand


def standard_chain(
    build: ProgramBuilder, x: Operand, spare: Operand, rows: Sequence[Row], *, whole_factor: bool
) -> LastProduct:
    """A = XX^T; X <- aX + (bA + cA^2) X, once a row. https://kellerjordan.github.io/posts/muon/

    whole_factor: X <- (aI + bA + cA^2) X instead.
    """
    p = build.buffer(x.rows, x.rows)
    # A Gram matrix is no longer needed when the next X is written.
    grams = {operand: build.carve(operand, x.rows, 1)[0] for operand in (x, spare)}
    for k, (a, b, c) in enumerate(rows):
        gram = grams[spare]
        delta = a if whole_factor else 0.0
        if not c:
            build.symm_gemm(x, x.mT, p, alpha=b, delta=delta)
        elif whole_factor and abs(b) <= 2 * LARGEST_SHIFT * abs(c):
            shift = b / (2 * c)
            build.symm_gemm(x, x.mT, gram, delta=shift)
            build.symm_gemm(gram, gram, p, alpha=c, delta=a - c * shift * shift)
        else:
            build.symm_gemm(x, x.mT, gram)
            build.symm_gemm(gram, gram, p, alpha=c, c=gram, beta=b, delta=delta)
        if not whole_factor:
            build.gemm_add(p, x, spare, c=x, beta=a)
        elif k + 1 < len(rows):
            build.gemm_add(p, x, spare)
        else:
            return LastProduct(p, x, spare)
        x, spare = spare, x
    return LastProduct(None, x, spare)


def gram_chain(build: ProgramBuilder, x: Operand, spare: Operand, rows: Sequence[Row]) -> LastProduct:
    """The same polynomial evaluated in R = XX^T, so that X is touched only at a restart and at the end.

    Per row: P = aI + bR + cR^2, Q <- QP, R <- PRP; finally X <- QX. https://github.com/Dao-AILab/gram-newton-schulz
    """
    if not rows:
        return LastProduct(None, x, spare)
    home = q = build.buffer(x.rows, x.rows)
    rest: list[Operand] = []  # scratch beyond what fits into the spare X
    for k, (a, b, c) in enumerate(rows):
        if k == RESTART_STEP:
            build.gemm_add(q, x, spare)
            x, spare = spare, x
        if k in (0, RESTART_STEP):
            # The spare X is free until it takes QX. Q and W change places in every step but the first after a start,
            # and Q must be at home at the end.
            end = RESTART_STEP if k < RESTART_STEP < len(rows) else len(rows)
            inside = build.carve(spare, x.rows, 3)
            rest = rest or [build.buffer(x.rows, x.rows) for _ in range(3 - len(inside))]
            r, p, other = inside + rest
            q, w = (home, other) if (end - k) % 2 else (other, home)
            build.symm_gemm(x, x.mT, r)
            build.symm_gemm(r, r, q, alpha=c, c=r, beta=b, delta=a)
            factor = q
        else:
            build.symm_gemm(r, r, p, alpha=c, c=r, beta=b, delta=a)
            build.symm_gemm(q, p, w)
            q, w, factor = w, q, p
        if k + 1 not in (RESTART_STEP, len(rows)):
            build.symm_gemm(r, factor, w)
            build.symm_gemm(w, factor, r)
    return LastProduct(q, x, spare)
