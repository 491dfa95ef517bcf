"""A whole wave of a step on the kernels of csrc in one call: prologue, normalize, chains and gemm_apply."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import extension
from .cuda_scalars import address, step_arguments
from .device import current_stream, on_device

if TYPE_CHECKING:
    from ..orthogonalize import ChainPlan


def wave(
    plan: ChainPlan,
    workspace: Tensor,
    grads: list[Tensor],
    momenta: list[Tensor],
    params: list[Tensor],
    *,
    momentum: float,
    nesterov: bool,
    maximize: bool,
    grad_scale: Tensor | None,
    eps: float,
    safety_factor: float,
    lr: float | Tensor,
    weight_decay: float,
    scales: list[float],
    found_inf: Tensor | None,
) -> bool:
    """What the four ops of `muon_kernels.ops` do one after the other, bit for bit.

    Args:
        plan: of float16 chains that all leave a last product.
        workspace: float16 [plan.program.elements].
        grads, momenta, params: the matrices of the plan's groups, in their order.

    Returns:
        False, and nothing has happened, if the last products cannot write these parameters.
    """
    module, device = extension.load(), params[0].device
    step = module.WaveStep(_wave(plan), grads, momenta, params, scales, workspace.data_ptr())
    if not step.fits():
        return False
    arguments = step_arguments(lr, weight_decay, found_inf, device)
    with on_device(device):
        sumsq = torch.empty(len(grads) + step.partials(), dtype=torch.float64, device=device)
        counters = torch.empty(step.counters(), dtype=torch.int32, device=device)
        step.launch(
            momentum,
            nesterov,
            maximize,
            address("grad_scale", grad_scale, device),
            eps,
            safety_factor,
            *arguments,
            sumsq.data_ptr(),
            sumsq.data_ptr() + len(grads) * sumsq.itemsize,  # the kernel's partial sums
            counters.data_ptr(),
            current_stream(device),
        )
    torch.autograd.graph.increment_version(momenta)
    torch.autograd.graph.increment_version(params)
    return True


@lru_cache(maxsize=256)
def _wave(plan: ChainPlan) -> Any:
    """What the plan's shapes decide, as a C++ object."""
    module, program = extension.load(), plan.program
    chains = module.Chains(program.buffers, program.products, program.scalars, program.chains)
    return module.Wave(chains, plan.inputs, plan.normalised, plan.factors, plan.xs)
