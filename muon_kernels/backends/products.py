"""Ops made of simpler ones, for backends that have no kernel for them: chains product by product, a product and then a
step of parameters with it, sums of squares and then what they normalise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ..program import BUFFER_FIELDS, NONE, NORM_ROWS, PRODUCT_FIELDS, SCALAR_FIELDS, Kind, rows_of, view

Op = Callable[..., None]


class _Chain(NamedTuple):
    views: list[Tensor]
    products: tuple[tuple[int, ...], ...]
    scalars: tuple[tuple[float, ...], ...]

    def operand(self, code: int) -> list[Tensor]:
        """A list of one tensor, or of none."""
        if code == NONE:
            return []
        tensor = self.views[code // 2]
        return [tensor.mT if code % 2 else tensor]


def stored_first(gemm_add: Op, apply: Op) -> Op:
    """The op `gemm_apply` on top of `gemm_add` and `apply`, with memory for the products of one entry at a time."""

    def gemm_apply(
        a: list[Tensor],
        b: list[Tensor],
        params: list[Tensor],
        *,
        lr: Tensor,
        weight_decay: float,
        scales: list[float],
        found_inf: Tensor | None,
    ) -> None:
        first = 0
        for left, right in zip(a, b, strict=True):
            product = torch.empty((*left.shape[:2], right.shape[2]), dtype=left.dtype, device=left.device)
            gemm_add([left], [right], [], [product], alpha=1.0, beta=0.0)
            own = slice(first, first := first + len(product))
            apply(
                params[own],
                list(product.unbind(0)),
                lr=lr,
                weight_decay=weight_decay,
                scales=scales[own],
                found_inf=found_inf,
            )

    return gemm_apply


def summed_first(sum_squares: Op, normalize: Op) -> Op:
    """The op `normalize`, also without sums, on top of `sum_squares` and of a `normalize` that is given them."""

    def with_own_sums(
        xs: list[Tensor], sumsq: Tensor | None, outs: list[Tensor], *, eps: float, safety_factor: float
    ) -> None:
        if sumsq is None:
            sumsq = torch.empty(sum(map(len, xs)), dtype=torch.float64, device=xs[0].device)
            sum_squares(xs, sumsq)
        normalize(xs, sumsq, outs, eps=eps, safety_factor=safety_factor)

    return with_own_sums


def one_by_one(symm_gemm: Op, gemm_add: Op) -> Op:
    """The op `chains` on top of the two product ops. Chains with the same products share calls."""

    def chains(
        workspace: list[Tensor], *, buffers: list[int], products: list[int], scalars: list[float], chains: list[int]
    ) -> None:
        alike = sorted(_chains(workspace[0], buffers, products, scalars, chains), key=lambda chain: chain[1:])
        for (signature, factors), group in groupby(alike, key=lambda chain: (chain.products, chain.scalars)):
            members = list(group)
            for (kind, *codes, p, q, r), (alpha, beta, delta) in zip(signature, factors, strict=True):
                a, b, c, out, norms = ([t for m in members for t in m.operand(code)] for code in codes)
                if kind == Kind.GRAM_NORMS:
                    gram_norms(a, out)
                elif kind == Kind.GEMM_ADD:
                    gemm_add(a, b, c, out, alpha=alpha, beta=beta)
                elif not norms:
                    symm_gemm(a, b, c, out, alpha=alpha, beta=beta, delta=delta)
                else:
                    _gained(symm_gemm, a, b, c, out, norms, (p, q, r), alpha, beta, delta)

    return chains


def gram_norms(grams: list[Tensor], outs: list[Tensor]) -> None:
    """`ProgramBuilder.gram_norms` for a problem list; sums in float32 or, of float64, in float64."""
    for gram, out in zip(grams, outs, strict=True):
        math = torch.promote_types(gram.dtype, torch.float32)
        squares = torch.linalg.vector_norm(gram, dim=-1, dtype=math).square()
        for row, values in enumerate((squares, gram.diagonal(dim1=-2, dim2=-1).to(math))):
            padding = -values.shape[-1] % NORM_ROWS
            parts = torch.nn.functional.pad(values, (0, padding)).unflatten(-1, (-1, NORM_ROWS)).sum(-1)
            out[:, row].copy_(parts if row else parts.sqrt())


def gain(norms: Tensor) -> Tensor:
    """[batch] from what `gram_norms` has written."""
    parts = norms.to(torch.promote_types(norms.dtype, torch.float32))
    norm, trace = parts[:, 0].square().sum(-1).sqrt(), parts[:, 1].sum(-1)
    return torch.where(norm == 0, 0.0, trace / norm).sqrt()


def _gained(
    symm_gemm: Op,
    a: list[Tensor],
    b: list[Tensor],
    c: list[Tensor],
    outs: list[Tensor],
    norms: list[Tensor],
    powers: Sequence[int],
    alpha: float,
    beta: float,
    delta: float,
) -> None:
    """symm_gemm with factors of each matrix, in float32 or float64, and rounded once.

    Q is a small difference of large terms: operands that were rounded again after they had been multiplied by factors
    brought bfloat16 to singular values of 342 (720 matrices with 24 to 64 rows, margin 1.1 of bench/fit_squaring.py).
    """
    dtype = torch.promote_types(outs[0].dtype, torch.float32)

    def multiplied(tensors: list[Tensor], power: float) -> list[Tensor]:
        factors = [gain(x).pow(power)[:, None, None] for x in norms]
        return [t.to(dtype) * factor for t, factor in zip(tensors, factors, strict=True)]

    left = multiplied(a, powers[0] / 2)
    same = all(x is y for x, y in zip(a, b, strict=True))
    right = left if same else multiplied(b, powers[0] / 2)
    results = [torch.empty_like(out, dtype=dtype) for out in outs]
    symm_gemm(left, right, multiplied(c, powers[1]) if c else c, results, alpha=alpha, beta=beta, delta=0.0)
    for out, result, own in zip(outs, results, norms, strict=True):
        result.diagonal(dim1=-2, dim2=-1).add_((delta * gain(own).pow(powers[2]))[:, None])
        out.copy_(result)


def _chains(
    workspace: Tensor, buffers: Sequence[int], products: Sequence[int], scalars: Sequence[float], chains: Sequence[int]
) -> list[_Chain]:
    views = iter([view(workspace, buffer) for buffer in rows_of(buffers, BUFFER_FIELDS)])
    codes = iter([tuple(product) for product in rows_of(products, PRODUCT_FIELDS)])
    factors = (tuple(scalars[i : i + SCALAR_FIELDS]) for i in range(0, len(scalars), SCALAR_FIELDS))
    return [
        _Chain(
            [next(views) for _ in range(buffer_count)],
            tuple(next(codes) for _ in range(product_count)),
            tuple(next(factors) for _ in range(product_count)),
        )
        for buffer_count, product_count in rows_of(chains, 2)
    ]
