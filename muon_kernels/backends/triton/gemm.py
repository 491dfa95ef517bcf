"""What the products share on the host: a problem list as launches and kernel arguments.

A launch takes up to MAX_ENTRIES entries of a problem list, each a batch of equal matrices. Entries travel by value as
tuples, so a captured CUDA graph holds them and nothing is uploaded. Entries share a launch if they share a tile
configuration and a memory layout: the configuration depends on an entry alone, so the neighbours change no bit, and
the layout decides how wide loads are.

Operands are loaded through pointers or, where the configuration says so and they lie as it takes, through tensor
descriptors (TMA on Hopper and later). With pointers a program computes one tile; with descriptors, which take long to
build, as many programs as the card runs at once share out the tiles.

Planning costs the host more than a small product takes on the device: plans are kept, without tensors, for lists that
look alike.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..configs import GemmConfig, gemm_config, tile_count
from ..device import capability
from .launch import ALIGNMENT, Launch, kept, looks, processors, unspecialized

MAX_ENTRIES = 8

MOST_PLANS = 256

OPERANDS = ("a", "b", "c", "out", "norms")
"""The arguments of a chain's kernels that hold tensors."""

NARROW = GemmConfig(block_m=64, block_n=64, block_k=32, warps=8, stages=2, group=4)
"""For operands that cannot be loaded 16 bytes at a time: with loads element by element, a larger tile spills."""

_INTERPRETED = (80, 108)
"""The card that the interpreter stands for: compute capability and multiprocessors."""


_plans: dict[tuple[Hashable, ...], list[Planned]] = {}


@dataclass(frozen=True)
class Kind:
    """What entries that share a launch have in common."""

    config: GemmConfig
    even_k: bool
    layouts: tuple[Layout, ...]
    """Of a, b and whatever belongs to the result."""


def plan(
    op: str,
    kernel: triton.JITFunction,
    a: list[Tensor],
    b: list[Tensor],
    c: list[Tensor],
    outs: list[Tensor],
    factors: dict[str, Any],
) -> list[Launch]:
    """The launches that compute a problem list; `kernel` takes the arguments that `launch` builds, and `factors`, of
    which lists are operands."""
    launches = []
    layouts = [tuple([layout(x) for x in results]) for results in zip(*([c, outs] if c else [outs]), strict=True)]
    for kind, members in kinds(op, a, b, layouts).items():
        for first in range(0, len(members), MAX_ENTRIES):
            chosen = members[first : first + MAX_ENTRIES]
            results = {"c": fields(c, chosen) if c else None, "out": fields(outs, chosen)}
            own = {name: fields(x, chosen) if isinstance(x, list) else x for name, x in factors.items()}
            launches.append(launch(op, kernel, kind, a, b, chosen, results, own))
    return launches


def bound(
    op: str,
    kernel: triton.JITFunction,
    a: list[Tensor],
    b: list[Tensor],
    c: list[Tensor],
    outs: list[Tensor],
    factors: dict[str, Any],
) -> Iterator[Launch]:
    """What `plan` returns, planned once for lists that look alike; no `factors` are operands."""
    tensors = [*a, *b, *c, *outs]

    def make() -> list[Planned]:
        lists = [[x.detach() for x in each] for each in (a, b, c, outs)]  # a tensor that is in two lists becomes two
        places = {id(x): place for place, x in enumerate(chain(*lists))}
        left, right, terms, results = lists
        launches = plan(op, kernel, left, right, terms, results, factors)
        return [planned(launch, lambda x: places[id(x)]) for launch in launches]

    key = (kernel, len(a), *factors.values(), *looks(*tensors))
    for each in kept(_plans, MOST_PLANS, key, make):
        yield each.bind(tensors.__getitem__)


class Planned(NamedTuple):
    """A launch whose operands are still to come.

    operands: for each argument, (place, *strides) of the entries, a place being what `bind` can tell a pointer for.
    """

    launch: Launch
    operands: dict[str, tuple[tuple[int, ...], ...]]

    def bind(self, at: Callable[[int], Any]) -> Launch:
        """The launch on operands that begin at `at(place)`."""
        bound = {name: tuple([(at(place), *strides) for place, *strides in x]) for name, x in self.operands.items()}
        return self.launch.bind(bound)


def planned(launch: Launch, place: Callable[[Tensor], int]) -> Planned:
    """A launch of `plan`, to be kept without its tensors."""
    operands = {name: x for name, x in launch.arguments.items() if name in OPERANDS and x is not None}
    places = {name: tuple([(place(x), *strides) for x, *strides in each]) for name, each in operands.items()}
    return Planned(launch.plan(*operands), places)


def kinds(op: str, a: list[Tensor], b: list[Tensor], layouts: Sequence[tuple[Layout, ...]]) -> dict[Kind, list[int]]:
    """Indices of the entries of a problem list by kind; those with an empty result are left out.

    Args:
        op: whose configurations are used.
        layouts: of each entry, those of what belongs to its result.
    """
    groups: dict[Kind, list[int]] = {}
    for i, (left, right, others) in enumerate(zip(a, b, layouts, strict=True)):
        batch, m, k = left.shape
        n = right.shape[2]
        if batch * m * n:
            one, other = layout(left), layout(right)
            wide = one.wide and other.wide
            described = one.described and other.described
            config = _config(op, batch, m, n, k, left.dtype, left.device, wide, described) or NARROW
            groups.setdefault(Kind(config, k % config.block_k == 0, (one, other, *others)), []).append(i)
    return groups


def launch(
    op: str,
    kernel: triton.JITFunction,
    kind: Kind,
    a: list[Tensor],
    b: list[Tensor],
    chosen: list[int],
    results: dict[str, Any],
    factors: dict[str, Any],
) -> Launch:
    """One launch for the chosen entries; `results` are the kernel's arguments before the sizes, `factors` after."""
    config = kind.config
    sizes = []
    end = 0
    for i in chosen:
        batch, m, k = a[i].shape
        n = b[i].shape[2]
        end += batch * tile_count(op, config, m, n)
        sizes.append((m, n, k, unspecialized(end)))
    if end >= 2**31:
        raise ValueError(f"a launch may have fewer than 2^31 tiles, got {end}")
    arguments = {
        "a": fields(a, chosen),
        "b": fields(b, chosen),
        **results,
        "sizes": tuple(sizes),
        **factors,
        "ENTRIES": len(chosen),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP": config.group,
        "EVEN_K": kind.even_k,
        "PROGRAMS": config.programs,
        "TRANS_A": kind.layouts[0].unit == 0,
        "TRANS_B": kind.layouts[1].unit == 0,
    }
    programs = min(end, config.programs * _card(a[chosen[0]].device)[1]) if config.programs else end
    return Launch(kernel, (programs,), arguments, config.warps, config.stages, config.registers)


def fields(tensors: list[Tensor], chosen: list[int]) -> tuple[tuple[Any, ...], ...]:
    """An operand of the chosen entries as kernels take it."""
    return tuple([(tensors[i], *tensors[i].stride()) for i in chosen])


def _config(
    op: str,
    batch: int,
    m: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    device: torch.device,
    wide: bool,
    described: bool,
) -> GemmConfig | None:
    return gemm_config(op, batch, m, n, k, dtype.itemsize, *_card(device), wide=wide, described=described)


def _card(device: torch.device) -> tuple[int, int]:
    """Compute capability and multiprocessors."""
    return _INTERPRETED if device.type == "cpu" else (capability(device), processors(device))


@dataclass(frozen=True)
class Layout:
    """What Triton specialises a kernel on, as far as it decides the width of loads and stores."""

    unit: int | None
    """The dimension whose stride is 1."""
    aligned: bool
    even: tuple[bool, bool]
    described: bool
    """Whether a tensor descriptor can hold it."""

    @property
    def wide(self) -> bool:
        """Whether 16 bytes can be loaded at a time."""
        return self.unit is not None and self.aligned and self.even[self.unit]


def layout(x: Tensor) -> Layout:
    strides = x.stride()
    unit = 1 if strides[2] == 1 else 0 if strides[1] == 1 else None
    # Triton knows of an integer only whether 16 divides it.
    aligned = x.data_ptr() % ALIGNMENT == 0 and all(s % 16 == 0 for s in strides if s != 1)
    described = (
        unit is not None and aligned and all(1 < s < 2**39 // x.itemsize for s in (strides[0], strides[2 - unit]))
    )
    return Layout(unit, aligned, (x.shape[1] % 16 == 0, x.shape[2] % 16 == 0), described)
