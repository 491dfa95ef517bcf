"""Whole waves on the kernels of csrc, each in one call: a step's (prologue_normalize, chains and gemm_apply), and
`orthogonalize`'s (normalize, chains and gemm_apply's kernel, which overwrites)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import compress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import extension
from .cuda_scalars import address, step_arguments
from .device import current_stream, on_device

if TYPE_CHECKING:
    from ..described import Described
    from ..orthogonalize import ChainPlan


def waves(
    waves: Sequence[tuple[ChainPlan, Sequence[int], list[float]]],
    grads: Described,
    momenta: Described,
    params: Described,
    *,
    momentum: float,
    nesterov: bool,
    maximize: bool,
    grad_scale: Tensor | None,
    eps: float,
    safety_factor: float,
    lr: float | Tensor,
    weight_decay: float,
    found_inf: Tensor | None,
) -> list[bool]:
    """What the four ops of `muon_kernels.ops` do one after the other, bit for bit, wave by wave.

    Args:
        waves: of each the plan, of float16 chains that all leave a last product, the numbers of its matrices in the
            lists below, in the order of the plan's groups, and what lr is multiplied by for each.
        grads, momenta, params: matrices on one device that were read, those of the waves of one dtype in each list.

    Returns:
        Whether each wave was stepped. Nothing has happened in one that the kernels cannot: `WaveStep::fits` of
        csrc/wave.cpp.
    """
    module, device = extension.load(), params.tensors[waves[0][1][0]].device
    scalars = (momentum, nesterov, maximize, address("grad_scale", grad_scale, device), eps, safety_factor)
    arguments = (*scalars, *step_arguments(lr, weight_decay, found_inf, device))
    lists = (grads.read, momenta.read, params.read)
    steps = [module.WaveStep(_wave(plan), order, *lists, scales) for plan, order, scales in waves]
    fit = [step.fits() for step in steps]
    if not any(fit):
        return fit
    fitting = list(compress(steps, fit))
    elements = max(plan.program.elements for plan, _, _ in compress(waves, fit))
    sums = max(step.scratch() for step in fitting)
    with on_device(device):
        stream = current_stream(device)
        workspace, scratch, _memory = _workspace(elements, sums, device)  # for one wave after the other
        for step in fitting:
            step.launch(*arguments, workspace, scratch, stream)
    stepped = [i for _, order, _ in compress(waves, fit) for i in order]
    for written in (momenta.tensors, params.tensors):
        torch.autograd.graph.increment_version([written[i] for i in stepped])
    return fit


def orthogonalize(
    plan: ChainPlan, xs: list[Tensor], outs: list[Tensor], *, eps: float, safety_factor: float
) -> list[bool]:
    """What `normalize`, `chains` and `gemm_add` of `muon_kernels.ops` do one after the other, bit for bit.

    Args:
        plan: of float16 chains that all leave a last product.
        xs: problem list in the order of the plan's groups.
        outs: problem list like `xs` in shape, overwritten.

    Returns:
        Whether it was done. Nothing has happened where the last products cannot write `outs`:
        `WaveOrthogonalize::fits` of csrc/wave.cpp.
    """
    call, device = extension.load().WaveOrthogonalize(_wave(plan), xs, outs), xs[0].device
    if not call.fits():
        return [False]
    with on_device(device):
        workspace, scratch, _memory = _workspace(plan.program.elements, call.scratch(), device)
        call.launch(eps, safety_factor, workspace, scratch, current_stream(device))
    return [True]


def _workspace(elements: int, doubles: int, device: torch.device) -> tuple[int, int, Tensor]:
    """Addresses of so many float16 elements and of so many float64 behind them, and the memory, to be kept until the
    last launch."""
    first = -(-elements // 4)
    memory = torch.empty(first + doubles, dtype=torch.float64, device=device)
    return memory.data_ptr(), memory.data_ptr() + 8 * first, memory


@lru_cache(maxsize=256)
def _wave(plan: ChainPlan) -> Any:
    """What the plan's shapes decide, as a C++ object."""
    module, program = extension.load(), plan.program
    chains = module.Chains(program.buffers, program.products, program.scalars, program.chains)
    return module.Wave(chains, plan.normalised, plan.factors, plan.xs)
