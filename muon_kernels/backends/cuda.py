"""The ops on our CUDA kernels: checks, launch.

What ops.py has checked (lengths, shapes, one dtype a list, one device) is not checked again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import extension
from . import cuda_chains, cuda_gemm_apply, cuda_products, cuda_wave
from .cuda_scalars import address, step_arguments
from .device import capability, current_stream, on_device

NAME = "cuda"

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_MINIMUM_CAPABILITY = 80
_PRODUCTS = ("symm_gemm", "gemm_add", "chains", "gemm_apply")


def unavailable_reason(op: str, device: torch.device, lists: Sequence[Sequence[Tensor]]) -> str | None:
    """Why `op` cannot run here on these tensors, or None.

    Raises:
        ExtensionUnavailable: the extension was built but does not import.
    """
    if op not in OPS and op not in WHOLES:
        return "no CUDA kernel for this op"
    if device.type != "cuda":
        return f"device is {device.type}, not cuda"
    reason = extension.unavailable_reason()
    if reason is not None:
        if extension.is_broken():
            extension.load()
        return reason
    sm = capability(device)
    if sm < _MINIMUM_CAPABILITY:
        return f"compute capability {sm // 10}.{sm % 10} is below 8.0"
    for tensors in lists:
        if tensors and tensors[0].dtype not in _DTYPES:
            return f"no CUDA kernel for {tensors[0].dtype}"
    if op in WHOLES:
        return cuda_products.refusal(op, device, ())
    return cuda_products.refusal(op, device, lists) if op in _PRODUCTS else None


def prologue(
    grads: list[Tensor],
    momenta: list[Tensor],
    outs: list[Tensor],
    sumsq: Tensor,
    *,
    momentum: float,
    nesterov: bool,
    ema: bool,
    maximize: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """See `muon_kernels.ops.prologue`. One launch for up to 815 dense tensors and one that adds up the squares."""
    _check_contiguous(sumsq)
    device = grads[0].device
    scalars = [address("grad_scale", grad_scale, device), address("found_inf", found_inf, device)]
    items = extension.load().Prologue(grads, momenta, outs)
    with on_device(device):
        partials = torch.empty(items.partials(), dtype=torch.float64, device=device)
        stream = current_stream(device)
        items.launch(momentum, nesterov, ema, maximize, *scalars, sumsq.data_ptr(), partials.data_ptr(), stream)
    torch.autograd.graph.increment_version(momenta)


def sum_squares(xs: list[Tensor], sumsq: Tensor) -> None:
    """See `muon_kernels.ops.sum_squares`. One launch for up to 1019 dense matrices and one that adds up."""
    _check_contiguous(sumsq)
    items = extension.load().SumSquares(xs)
    device = xs[0].device
    with on_device(device):
        partials = torch.empty(items.partials(), dtype=torch.float64, device=device)
        stream = current_stream(device)
        items.launch(sumsq.data_ptr(), partials.data_ptr(), stream)


def normalize(xs: list[Tensor], sumsq: Tensor | None, outs: list[Tensor], *, eps: float, safety_factor: float) -> None:
    """See `muon_kernels.ops.normalize`. One launch for up to 1019 dense matrices.

    Without `sumsq`, from sm_90 on, one launch for all matrices of equal clusters (1, 2, 4, 8 or 16 blocks, by size) up
    to 0.79 million elements, of which there may be 1359; larger ones take `sum_squares` and `normalize`.
    """
    if sumsq is not None:
        _check_contiguous(sumsq)
    items = extension.load().Normalize(xs, outs)
    device = xs[0].device
    with on_device(device):
        stream = current_stream(device)
        if sumsq is None:
            scratch = torch.empty(items.scratch(), dtype=torch.float64, device=device)
            items.launch(0, scratch.data_ptr(), eps, safety_factor, stream)
        else:
            items.launch(sumsq.data_ptr(), 0, eps, safety_factor, stream)


def apply(
    params: list[Tensor],
    updates: list[Tensor],
    *,
    lr: Tensor,
    weight_decay: float,
    scales: list[float],
    found_inf: Tensor | None,
) -> None:
    """See `muon_kernels.ops.apply`. One launch for up to 906 dense tensors."""
    device = params[0].device
    step = step_arguments(lr, weight_decay, found_inf, device)
    with on_device(device):
        stream = current_stream(device)
        extension.load().apply(params, updates, scales, *step, stream)
    # Autograd does not see writes through pointers; a stale saved parameter must be an error in backward.
    torch.autograd.graph.increment_version(params)


def gemm_add(
    a: list[Tensor], b: list[Tensor], c: list[Tensor], outs: list[Tensor], *, alpha: float, beta: float
) -> None:
    """See `muon_kernels.ops.gemm_add`. One launch for up to 8 entries with the same memory orders."""
    if outs[0].dtype == a[0].dtype:
        cuda_products.gemm_add(a, b, c, outs, alpha=alpha, beta=beta)
    else:
        cuda_gemm_apply.overwrite(a, b, outs, alpha)


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
    """See `muon_kernels.ops.gemm_apply`. One launch for up to 8 entries and 512 parameters with the same memory orders.

    Parameters in float32 or bfloat16 with a unit stride meet the product in its epilogue. For others the products are
    stored, in memory of their own, and applied.
    """
    step = step_arguments(lr, weight_decay, found_inf, params[0].device)
    if cuda_gemm_apply.step(a, b, params, scales, step):
        torch.autograd.graph.increment_version(params)
        return
    products = [x.new_empty((*x.shape[:2], y.shape[2]), dtype=torch.float32) for x, y in zip(a, b, strict=True)]
    cuda_gemm_apply.overwrite(a, b, products, 1.0)
    updates = [matrix for product in products for matrix in product.unbind(0)]
    apply(params, updates, lr=lr, weight_decay=weight_decay, scales=scales, found_inf=found_inf)


OPS: dict[str, Callable[..., None]] = {
    "prologue": prologue,
    "sum_squares": sum_squares,
    "normalize": normalize,
    "symm_gemm": cuda_products.symm_gemm,
    "gemm_add": gemm_add,
    "chains": cuda_chains.chains,
    "gemm_apply": gemm_apply,
    "apply": apply,
}


WHOLES: dict[str, Callable[..., list[bool]]] = {"waves": cuda_wave.waves, "orthogonalize": cuda_wave.orthogonalize}
"""What does the work of several ops in one call; returns whether it has, for each part."""


def _check_contiguous(sumsq: Tensor) -> None:
    if not sumsq.is_contiguous():
        raise ValueError(f"sumsq must be contiguous, got stride {sumsq.stride()}")
