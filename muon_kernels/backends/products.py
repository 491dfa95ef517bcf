"""Ops made of simpler ones, for backends that have no kernel for them: chains product by product, a product and then a
step of parameters with it, sums of squares and then what they normalise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ..program import BUFFER_FIELDS, NONE, PRODUCT_FIELDS, SCALAR_FIELDS, rows_of, view

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
            for (symmetric, *codes), (alpha, beta, delta) in zip(signature, factors, strict=True):
                a, b, c, out = ([t for m in members for t in m.operand(code)] for code in codes)
                if symmetric:
                    symm_gemm(a, b, c, out, alpha=alpha, beta=beta, delta=delta)
                else:
                    gemm_add(a, b, c, out, alpha=alpha, beta=beta)

    return chains


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
