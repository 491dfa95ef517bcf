"""chains: the products of a program, planned once for a program and bound to the workspace of each call.

Chains advance in step, link by link, so that alike products of several chains share a launch. Planning costs the host
more than a small product takes on the device; a plan holds buffer numbers instead of tensors, so it keeps no memory
alive and serves every workspace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from ...program import BUFFER_FIELDS, NONE, PRODUCT_FIELDS, SCALAR_FIELDS, rows_of, view
from . import gemm_add, symm_gemm
from .launch import ALIGNMENT, Launch, run

MOST_PLANS = 256
OPERANDS = ("a", "b", "c", "out")
"""The arguments of a product's kernel that hold tensors."""

_Kind = tuple[bool, bool, tuple[float, ...]]
"""Symmetric, without a summand, and the factors: what products of one launch share."""


class _Planned(NamedTuple):
    """A launch whose operands are numbers of buffers in place of tensors."""

    launch: Launch
    operands: dict[str, tuple[tuple[int, ...], ...]]

    def bind(self, views: Sequence[Tensor]) -> Launch:
        bound = {name: tuple((views[i], *strides) for i, *strides in each) for name, each in self.operands.items()}
        return replace(self.launch, arguments=self.launch.arguments | bound)


_plans: dict[tuple[Any, ...], list[_Planned]] = {}


def chains(
    workspace: list[Tensor], *, buffers: list[int], products: list[int], scalars: list[float], chains: list[int]
) -> None:
    """See `muon_kernels.ops.chains`."""
    space = workspace[0]
    views = [view(space, buffer) for buffer in rows_of(buffers, BUFFER_FIELDS)]
    program = (tuple(buffers), tuple(products), tuple(scalars), tuple(chains))
    key = (*program, space.dtype, space.device, space.data_ptr() % ALIGNMENT)
    if key not in _plans:
        if len(_plans) == MOST_PLANS:
            _plans.clear()
        _plans[key] = list(_plan(views, *program[1:]))
    run([planned.bind(views) for planned in _plans[key]], space.device)


def _plan(
    views: Sequence[Tensor], products: Sequence[int], scalars: Sequence[float], chains: Sequence[int]
) -> Iterator[_Planned]:
    numbers = {x.data_ptr(): i for i, x in enumerate(views)}

    def operand(code: int) -> Tensor:
        return views[code // 2].mT if code % 2 else views[code // 2]

    for (symmetric, _, factors), members in _links(products, scalars, chains):
        a, b, c, outs = ([operand(code) for code in codes if code != NONE] for codes in zip(*members, strict=True))
        alpha, beta, delta = factors
        if symmetric:
            launches = symm_gemm.plan(a, b, c, outs, alpha=alpha, beta=beta, delta=delta)
        else:
            launches = gemm_add.plan(a, b, c, outs, alpha=alpha, beta=beta)
        for launch in launches:
            operands = {name: launch.arguments[name] for name in OPERANDS if launch.arguments[name] is not None}
            yield _Planned(
                replace(launch, arguments={k: v for k, v in launch.arguments.items() if k not in operands}),
                {k: tuple((numbers[x.data_ptr()], *strides) for x, *strides in v) for k, v in operands.items()},
            )


def _links(
    products: Sequence[int], scalars: Sequence[float], chains: Sequence[int]
) -> Iterator[tuple[_Kind, list[tuple[int, ...]]]]:
    """For every link, the products of all chains by kind: their operands' codes, buffers counted over all chains."""
    factors_of = (tuple(scalars[i : i + SCALAR_FIELDS]) for i in range(0, len(scalars), SCALAR_FIELDS))
    rows = iter(zip(rows_of(products, PRODUCT_FIELDS), factors_of, strict=True))
    links: dict[int, dict[_Kind, list[tuple[int, ...]]]] = {}
    first = 0
    for buffer_count, product_count in rows_of(chains, 2):
        for link in range(product_count):
            (symmetric, *codes), factors = next(rows)
            kind = (bool(symmetric), codes[2] == NONE, factors)
            members = links.setdefault(link, {}).setdefault(kind, [])
            members.append(tuple(code if code == NONE else code + 2 * first for code in codes))
        first += buffer_count
    for kinds in links.values():
        yield from kinds.items()
