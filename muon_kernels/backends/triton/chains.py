"""chains: the products of a program, planned once for a program and bound to the workspace of each call.

Chains advance in step, link by link, so that alike products of several chains share a launch. Planning costs the host
more than a small product takes on the device; a plan holds compiled kernels, and offsets instead of tensors, so that it
keeps no memory alive and serves every workspace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.runtime import driver

from ...program import BUFFER_FIELDS, NONE, PRODUCT_FIELDS, SCALAR_FIELDS, Kind, rows_of, view
from ..device import on_device
from . import gemm, gemm_add, gram_norms, symm_gemm
from .launch import ALIGNMENT, INTERPRETED, Launch, kept
from .replay import Replay

MOST_PLANS = 256
MOST_KEPT = 4
"""Places of the workspace of a plan."""


class _Alike(NamedTuple):
    """What products of one launch share.

    powers: None without norms.
    """

    kind: Kind
    summand: bool
    factors: tuple[float, ...]
    powers: tuple[int, ...] | None


_Program = tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...], tuple[int, ...]]
"""The lists of a `Program`."""


class Planned:
    """The launches of a program, kept as they were bound: from step to step a workspace rarely moves, or it changes
    places with what was allocated beside it.

    They are bound to an address and a stream. Memory is reused in the order of its stream, so that a workspace that is
    on another one is another workspace in all likelihood.
    """

    def __init__(self, planned: list[gemm.Planned]) -> None:
        self._planned = planned
        self._kept: dict[tuple[int, int], Replay] = {}

    def bind(self, space: Tensor) -> Replay:
        if INTERPRETED:  # no plan keeps a tensor
            return Replay([planned.bind(lambda offset: space[offset:]) for planned in self._planned])
        address, size = space.data_ptr(), space.element_size()
        where = (address, driver.active.get_current_stream(driver.active.get_current_device()))
        replay = self._kept.get(where)
        if replay is None:
            replay = Replay([planned.bind(lambda offset: address + offset * size) for planned in self._planned])
            if not torch.cuda.is_current_stream_capturing():  # where the memory is another graph's
                if len(self._kept) >= MOST_KEPT:
                    self._kept.pop(next(iter(self._kept)), None)  # which another thread may have dropped
                self._kept[where] = replay
        return replay


_plans: dict[tuple[Any, ...], Planned] = {}


def chains(
    workspace: list[Tensor], *, buffers: list[int], products: list[int], scalars: list[float], chains: list[int]
) -> None:
    """See `muon_kernels.ops.chains`."""
    space = workspace[0]
    with on_device(space.device):
        planned(space, (tuple(buffers), tuple(products), tuple(scalars), tuple(chains))).bind(space).run(space.device)


def planned(space: Tensor, program: _Program) -> Planned:
    """The plan of a program for workspaces like `space`, on the current device."""
    key = (*program, space.dtype, space.device, space.data_ptr() % ALIGNMENT)
    return kept(_plans, MOST_PLANS, key, lambda: Planned(list(_plan(space, *program))))


def _plan(
    space: Tensor, buffers: Sequence[int], products: Sequence[int], scalars: Sequence[float], chains: Sequence[int]
) -> Iterator[gemm.Planned]:
    views = [view(space, buffer) for buffer in rows_of(buffers, BUFFER_FIELDS)]

    def operand(code: int) -> Tensor:
        return views[code // 2].mT if code % 2 else views[code // 2]

    for alike, members in _links(products, scalars, chains):
        a, b, c, outs, norms = (
            [operand(code) for code in codes if code != NONE] for codes in zip(*members, strict=True)
        )
        for launch in _launches(alike, a, b, c, outs, norms):
            yield gemm.planned(launch, lambda x: int(x.storage_offset() - space.storage_offset()))


def _launches(
    alike: _Alike, a: list[Tensor], b: list[Tensor], c: list[Tensor], outs: list[Tensor], norms: list[Tensor]
) -> list[Launch]:
    alpha, beta, delta = alike.factors
    if alike.kind == Kind.GRAM_NORMS:
        return gram_norms.plan(a, outs)
    if alike.kind == Kind.GEMM_ADD:
        return gemm_add.plan(a, b, c, outs, alpha=alpha, beta=beta)
    if alike.powers is None:
        return symm_gemm.plan(a, b, c, outs, alpha=alpha, beta=beta, delta=delta)
    p, q, r = alike.powers
    return symm_gemm.plan(a, b, c, outs, alpha=alpha, beta=beta, delta=delta, norms=norms, powers=(p, q, r))


def _links(
    products: Sequence[int], scalars: Sequence[float], chains: Sequence[int]
) -> Iterator[tuple[_Alike, list[tuple[int, ...]]]]:
    """For every link, the products that are alike, of all chains: their operands' codes, buffers counted over those."""
    factors_of = (tuple(scalars[i : i + SCALAR_FIELDS]) for i in range(0, len(scalars), SCALAR_FIELDS))
    rows = iter(zip(rows_of(products, PRODUCT_FIELDS), factors_of, strict=True))
    links: dict[int, dict[_Alike, list[tuple[int, ...]]]] = {}
    first = 0
    for buffer_count, product_count in rows_of(chains, 2):
        for link in range(product_count):
            (kind, a, b, c, out, norms, *powers), factors = next(rows)
            alike = _Alike(Kind(kind), c != NONE, factors, None if norms == NONE else tuple(powers))
            members = links.setdefault(link, {}).setdefault(alike, [])
            members.append(tuple(code if code == NONE else code + 2 * first for code in (a, b, c, out, norms)))
        first += buffer_count
    for each in links.values():
        yield from each.items()
