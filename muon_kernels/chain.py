"""The Newton-Schulz chains, written once against a ProgramBuilder; they know no backend.

Every function takes a wide matrix (rows <= cols; a tall one comes in transposed), already normalised, and `spare`,
scratch of the same shape. Both are overwritten; the one that is returned holds the result.

With A = XX^T a step multiplies X by P = aI + bA + cA^2. Where P is formed with its term aI, only one product of a
step adds a matrix; a is then rounded with P's diagonal, where textbooks add aX in full precision. In float16 the error
over the zoo of spectra, three presets and two shapes is 0.4 to 1.2 times the textbook's. In bfloat16 it can be three
times as large on flat spectra, where all rounding errors of the diagonal agree.
"""

from __future__ import annotations

from collections.abc import Sequence

from .coefficients import Row
from .program import Operand, ProgramBuilder

RESTART_STEP = 2
"""The Gram chain folds Q into X and rebuilds R before this step (counted from 0): in 16 bit, rounding gives R small
negative eigenvalues that grow without it. One restart before the third step is the choice of Zhang, Amsel, Chen and
Dao (gram-newton-schulz)."""


def standard_chain(
    build: ProgramBuilder, x: Operand, spare: Operand, rows: Sequence[Row], *, whole_factor: bool
) -> Operand:
    """A = XX^T; X <- aX + (bA + cA^2) X, once a row. https://kellerjordan.github.io/posts/muon/

    whole_factor: X <- (aI + bA + cA^2) X instead.
    """
    gram, p = (build.buffer(x.rows, x.rows) for _ in range(2))
    for a, b, c in rows:
        delta = a if whole_factor else 0.0
        if c:
            build.symm_gemm(x, x.mT, gram)
            build.symm_gemm(gram, gram, p, alpha=c, c=gram, beta=b, delta=delta)
        else:
            build.symm_gemm(x, x.mT, p, alpha=b, delta=delta)
        if whole_factor:
            build.gemm_add(p, x, spare)
        else:
            build.gemm_add(p, x, spare, c=x, beta=a)
        x, spare = spare, x
    return x


def gram_chain(build: ProgramBuilder, x: Operand, spare: Operand, rows: Sequence[Row]) -> Operand:
    """The same polynomial evaluated in R = XX^T, so that X is touched only at a restart and at the end.

    Per row: P = aI + bR + cR^2, Q <- QP, R <- PRP; finally X <- QX. https://github.com/Dao-AILab/gram-newton-schulz
    """
    if not rows:
        return x
    r, p, q, w = (build.buffer(x.rows, x.rows) for _ in range(4))
    for k, (a, b, c) in enumerate(rows):
        if k == RESTART_STEP:
            build.gemm_add(q, x, spare)
            x, spare = spare, x
        if k in (0, RESTART_STEP):
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
    build.gemm_add(q, x, spare)
    return spare
