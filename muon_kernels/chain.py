"""The Newton-Schulz chains, written once against the ops; they work on problem lists and know no backend.

Every function takes wide matrices (rows <= cols; tall ones come in as transposed views), already normalised, in two
lists of equal shapes: `xs` holds the matrices, `spare` is scratch. Both are overwritten; the result is in the list
that is returned.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .coefficients import Row
from .ops import gemm_add, symm_gemm
from .workspace import empty_like_batch

Problems = list[Tensor]

RESTART_STEP = 2
"""The Gram chain folds Q into X and rebuilds R before this step (counted from 0): in 16 bit, rounding gives R small
negative eigenvalues that grow without it. One restart before the third step is the choice of Zhang, Amsel, Chen and
Dao (gram-newton-schulz)."""


def standard_chain(xs: Problems, spare: Problems, rows: Sequence[Row]) -> Problems:
    """A = XX^T; X <- aX + (bA + cA^2)X, once a row. https://kellerjordan.github.io/posts/muon/"""
    gram, poly = (_square_like(xs) for _ in range(2))
    for a, b, c in rows:
        symm_gemm(xs, [x.mT for x in xs], [], gram)
        if c:
            symm_gemm(gram, gram, gram, poly, alpha=c, beta=b)
            gemm_add(poly, xs, xs, spare, alpha=1.0, beta=a)
        else:
            gemm_add(gram, xs, xs, spare, alpha=b, beta=a)
        xs, spare = spare, xs
    return xs


def gram_chain(xs: Problems, spare: Problems, rows: Sequence[Row]) -> Problems:
    """The same polynomial evaluated in R = XX^T, so that X is touched only at a restart and at the end.

    Per row: Z = bR + cR^2, Q <- aQ + QZ, W = aR + RZ, R <- aW + WZ; finally X <- QX. The term a of Z stays implicit,
    which keeps 16-bit rounding harmless. https://github.com/Dao-AILab/gram-newton-schulz
    """
    r, z, q, w = (_square_like(xs) for _ in range(4))
    for k, (a, b, c) in enumerate(rows):
        fresh = k in (0, RESTART_STEP)
        if fresh:
            if k:
                gemm_add(q, xs, [], spare)
                xs, spare = spare, xs
            symm_gemm(xs, [x.mT for x in xs], [], r)
        symm_gemm(r, r, r, z, alpha=c, beta=b)
        if fresh:
            for q_i, z_i in zip(q, z, strict=True):
                q_i.copy_(z_i).diagonal(dim1=-2, dim2=-1).add_(a)
        else:
            symm_gemm(q, z, q, w, beta=a)
            q, w = w, q
        if k + 1 not in (RESTART_STEP, len(rows)):
            symm_gemm(r, z, r, w, beta=a)
            symm_gemm(w, z, w, r, beta=a)
    if rows:
        gemm_add(q, xs, [], spare)
        xs = spare
    return xs


def _square_like(xs: Problems) -> Problems:
    return [empty_like_batch(x, x.shape[1], x.shape[1]) for x in xs]
