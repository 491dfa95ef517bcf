"""The ops on our CUDA kernels: checks, integers, launch.

What ops.py has checked (lengths, shapes, one dtype a list, one device) is not checked again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import extension
from . import cuda_chains, cuda_gemm_apply, cuda_products
from .device import capability, on_device
from .strides import as_matrices

NAME = "cuda"

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""csrc/api.h's DType."""

_MINIMUM_CAPABILITY = 80
_PRODUCTS = ("symm_gemm", "gemm_add", "chains", "gemm_apply")


def unavailable_reason(op: str, device: torch.device, lists: Sequence[Sequence[Tensor]]) -> str | None:
    """Why `op` cannot run here on these tensors, or None.

    Raises:
        ExtensionUnavailable: the extension was built but does not import.
    """
    if op not in OPS:
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
    module = extension.load()
    dtypes = [_dtype("grads", grads), _dtype("momenta", momenta), _dtype("outs", outs)]
    if not sumsq.is_contiguous():
        raise ValueError(f"sumsq must be contiguous, got stride {sumsq.stride()}")
    device = grads[0].device
    scalars = [_scalar("grad_scale", grad_scale, device), _scalar("found_inf", found_inf, device)]
    items = module.PrologueItems(_matrices("grads, momenta and outs", grads, momenta, outs))
    with on_device(device):
        partials = torch.empty(module.prologue_partials(items, *dtypes), dtype=torch.float64, device=device)
        module.prologue(
            items,
            *dtypes,
            momentum,
            nesterov,
            ema,
            maximize,
            *scalars,
            sumsq.data_ptr(),
            partials.data_ptr(),
            torch.cuda.current_stream(device).cuda_stream,
        )
    torch.autograd.graph.increment_version(momenta)


def sum_squares(xs: list[Tensor], sumsq: Tensor) -> None:
    """See `muon_kernels.ops.sum_squares`. One launch for up to 1019 dense matrices and one that adds up."""
    module = extension.load()
    dtype = _dtype("xs", xs)
    if not sumsq.is_contiguous():
        raise ValueError(f"sumsq must be contiguous, got stride {sumsq.stride()}")
    items = [(*x.shape, x.data_ptr(), *x.stride()) for x in xs]
    device = xs[0].device
    with on_device(device):
        partials = torch.empty(module.sum_squares_partials(items, dtype), dtype=torch.float64, device=device)
        stream = torch.cuda.current_stream(device).cuda_stream
        module.sum_squares(items, dtype, sumsq.data_ptr(), partials.data_ptr(), stream)


def normalize(xs: list[Tensor], sumsq: Tensor, outs: list[Tensor], *, eps: float, safety_factor: float) -> None:
    """See `muon_kernels.ops.normalize`. One launch for up to 1019 dense matrices."""
    dtypes = [_dtype("xs", xs), _dtype("outs", outs)]
    if not sumsq.is_contiguous():
        raise ValueError(f"sumsq must be contiguous, got stride {sumsq.stride()}")
    items = [
        (*x.shape, x.data_ptr(), *x.stride(), out.data_ptr(), *out.stride()) for x, out in zip(xs, outs, strict=True)
    ]
    device = xs[0].device
    with on_device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        extension.load().normalize(items, *dtypes, sumsq.data_ptr(), eps, safety_factor, stream)


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
    dtypes = [_dtype("params", params), _dtype("updates", updates)]
    device = params[0].device
    items = _matrices("params and updates", params, updates)
    step = _step_arguments(lr, weight_decay, found_inf, device)
    with on_device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        extension.load().apply(items, scales, *dtypes, *step, stream)
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
    step = _step_arguments(lr, weight_decay, found_inf, params[0].device)
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


def _dtype(name: str, tensors: list[Tensor]) -> int:
    dtype = tensors[0].dtype
    if dtype not in _DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16 or float16 for the CUDA kernels, got {dtype}")
    return _DTYPES[dtype]


def _scalar(name: str, value: Tensor | None, device: torch.device) -> int:
    if value is None:
        return 0
    if value.dtype != torch.float32 or value.device != device:
        raise ValueError(f"{name} must be float32 on {device}, got {value.dtype} on {value.device}")
    return value.data_ptr()


def _step_arguments(
    lr: Tensor, weight_decay: float, found_inf: Tensor | None, device: torch.device
) -> tuple[float, float, int, bool, int]:
    """What the binding wants to know of a step: weight decay, lr on the host, lr and its width on the device,
    found_inf."""
    on_host = lr.device.type == "cpu"
    if not on_host and lr.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"lr on the device must be float32 or float64, got {lr.dtype}")
    if not on_host and lr.device != device:
        raise ValueError(f"lr must be on the CPU or on {device}, got {lr.device}")
    return (
        weight_decay,
        lr.item() if on_host else 0.0,
        0 if on_host else lr.data_ptr(),
        lr.dtype == torch.float64,
        _scalar("found_inf", found_inf, device),
    )


def _matrices(names: str, *lists: list[Tensor]) -> list[tuple[int, ...]]:
    """The rows of integers that csrc/bindings.cpp reads, one per tensor of the lists."""
    if all(all(map(Tensor.is_contiguous, tensors)) for tensors in lists):
        pointers = zip(*(map(Tensor.data_ptr, tensors) for tensors in lists), strict=True)
        count = len(lists)
        return [(1, n, *row, *(n, 1) * count) for n, row in zip(map(Tensor.numel, lists[0]), pointers, strict=True)]
    matrices = []
    for i, tensors in enumerate(zip(*lists, strict=True)):
        matrix = as_matrices(tensors)
        if matrix is None:
            strides = [t.stride() for t in tensors]
            raise ValueError(f"{names} at index {i} must merge into at most two dimensions, got strides {strides}")
        matrices.append(matrix)
    return matrices
