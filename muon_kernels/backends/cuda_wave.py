"""Whole waves of a step on the kernels of csrc, each in one call: prologue_normalize, chains and gemm_apply."""

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
    # For one wave after the other: a workspace, and behind it what `WaveStep.scratch` counts.
    doubles = -(-max(plan.program.elements for plan, _, _ in compress(waves, fit)) // 4)
    sums = max(step.scratch() for step in fitting)
    with on_device(device):
        stream = current_stream(device)
        memory = torch.empty(doubles + sums, dtype=torch.float64, device=device)
        workspace = memory.data_ptr()
        for step in fitting:
            step.launch(*arguments, workspace, workspace + 8 * doubles, stream)
    stepped = [i for _, order, _ in compress(waves, fit) for i in order]
    for written in (momenta.tensors, params.tensors):
        torch.autograd.graph.increment_version([written[i] for i in stepped])
    return fit


@lru_cache(maxsize=256)
def _wave(plan: ChainPlan) -> Any:
    """What the plan's shapes decide, as a C++ object."""
    module, program = extension.load(), plan.program
    chains = module.Chains(program.buffers, program.products, program.scalars, program.chains)
    return module.Wave(chains, plan.normalised, plan.factors, plan.xs)
