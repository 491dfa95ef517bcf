"""`orthogonalize` in one call: what `normalize`, `chains` and `gemm_add` launch, planned together.

The ops one by one take the host longer than the device needs for a 2048 x 2048 matrix. Here matrices that look alike
share a plan, all of whose memory is allocated at once, and the host asks once what each op would ask again.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor

from ...program import view
from ..device import on_device
from . import chains, gemm, gemm_add, normalize
from .launch import ALIGNMENT, INTERPRETED, Launch, kept, looks, run

if TYPE_CHECKING:
    from ...orthogonalize import ChainPlan

MOST_PLANS = 256


class _Plan:
    """The launches of a call, on float16 memory: the chains' workspace and, behind it, each entry's partial sums of
    squares. Where those and what is read of the workspace begin, it knows as offsets in elements.

    The last products know their operands as places in the list of `_pointers`.
    """

    def __init__(self, plan: ChainPlan, xs: list[Tensor], outs: list[Tensor]) -> None:
        space = torch.empty(plan.program.elements, dtype=torch.float16, device=xs[0].device)
        self._elements = _aligned(plan.program.elements)
        self._sums: list[int] = []
        self._offsets = [buffer[0] for buffer in plan.normalised]
        self._normalize: list[normalize.Planned] = []
        for x, buffer in zip(xs, plan.normalised, strict=True):
            self._normalize.append(normalize.planned(x, view(space, buffer)))
            self._sums.append(self._elements)
            self._elements += _aligned(len(x) * self._normalize[-1].parts * (torch.float64.itemsize // space.itemsize))
        places = {id(out): place for place, out in enumerate(outs, len(xs))}

        def place(x: Tensor) -> int:
            if id(x) in places:
                return places[id(x)]
            self._offsets.append(int(x.storage_offset()))
            return 3 * len(xs) + len(self._offsets) - 1

        self._chains = chains.planned(space, plan.program.lists)
        last = gemm_add.plan(*plan.last_products(space), [], outs, alpha=1.0, beta=0.0)
        self._last = [gemm.planned(launch, place) for launch in last]

    def launches(self, xs: list[Tensor], outs: list[Tensor], eps: float, safety_factor: float) -> Iterator[Launch]:
        """Those of one call; the chains' are run when the one behind them is asked for."""
        memory = torch.empty(self._elements, dtype=torch.float16, device=xs[0].device)
        pointers = self._pointers(memory, xs, outs)
        count = len(xs)
        for i, entry in enumerate(self._normalize):
            x, _, sums, normalised = pointers[i : 4 * count : count]
            yield from entry.bind(x, normalised, sums, 0, eps, safety_factor)
        self._chains.bind(memory).run(memory.device)
        for product in self._last:
            yield product.bind(pointers.__getitem__)

    def _pointers(self, memory: Tensor, xs: list[Tensor], outs: list[Tensor]) -> list[Any]:
        """To xs, outs, the sums and the normalised matrices of each entry, and to operands of the last products."""
        if INTERPRETED:
            sums = [memory[offset:].view(torch.float64) for offset in self._sums]
            return [*xs, *outs, *sums, *[memory[offset:] for offset in self._offsets]]
        start, size = memory.data_ptr(), memory.itemsize
        given = [x.data_ptr() for x in xs] + [out.data_ptr() for out in outs]
        return given + [start + offset * size for offset in self._sums + self._offsets]


def _aligned(elements: int) -> int:
    """So many float16 elements, and those up to where more memory may begin."""
    return triton.cdiv(elements * torch.float16.itemsize, ALIGNMENT) * ALIGNMENT // torch.float16.itemsize


_plans: dict[tuple[Hashable, ...], _Plan] = {}


def orthogonalize(
    plan: ChainPlan, xs: list[Tensor], outs: list[Tensor], *, eps: float, safety_factor: float
) -> list[bool]:
    """See `muon_kernels.backends.cuda_wave.orthogonalize`; nothing is refused here."""
    device = outs[0].device
    with on_device(device):
        planned = kept(_plans, MOST_PLANS, (plan, *looks(*xs, *outs)), partial(_Plan, plan, xs, outs))
        run(planned.launches(xs, outs, eps, safety_factor), device)
    return [True]
