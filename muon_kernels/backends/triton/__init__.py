"""The ops in Triton: any NVIDIA card from compute capability 8.0 on, and any device within Triton's interpreter.

Importing this package never fails for want of Triton; `unavailable_reason` says so instead.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..device import capability

NAME = "triton"

_INSTALLED = importlib.util.find_spec("triton") is not None

OPS: dict[str, Callable[..., None]] = {}

WHOLES: dict[str, Callable[..., list[bool]]] = {}
"""What does the work of several ops in one call; returns that it has."""

if _INSTALLED:
    import triton as _triton

    from . import apply as _apply
    from . import chains as _chains
    from . import gemm_add as _gemm_add
    from . import gemm_apply as _gemm_apply
    from . import normalize as _normalize
    from . import prologue as _prologue
    from . import sum_squares as _sum_squares
    from . import symm_gemm as _symm_gemm
    from . import whole as _whole
    from .launch import warm_up as warm_up

    OPS |= {
        "prologue": _prologue.prologue,
        "sum_squares": _sum_squares.sum_squares,
        "normalize": _normalize.normalize,
        "symm_gemm": _symm_gemm.symm_gemm,
        "gemm_add": _gemm_add.gemm_add,
        "chains": _chains.chains,
        "gemm_apply": _gemm_apply.gemm_apply,
        "apply": _apply.apply,
    }
    WHOLES["orthogonalize"] = _whole.orthogonalize

_MINIMUM_CAPABILITY = 80
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def unavailable_reason(op: str, device: torch.device, lists: Sequence[Sequence[Tensor]]) -> str | None:
    """Why `op` cannot run here on these tensors, or None."""
    if not _INSTALLED:
        return "Triton is not installed"
    if not _triton.knobs.runtime.interpret:
        if device.type != "cuda":
            return f"device is {device.type}, not cuda"
        sm = capability(device)
        if sm < _MINIMUM_CAPABILITY:
            return f"compute capability {sm // 10}.{sm % 10} is below 8.0"
        if op in ("symm_gemm", "gemm_add", "chains", "gemm_apply") and lists and lists[0][0].dtype == torch.float32:
            return "float32 products are for the interpreter: on a device they would not run on tensor cores"
    for tensors in lists:
        if tensors and tensors[0].dtype not in _DTYPES:
            return f"no Triton kernel for {tensors[0].dtype}"
    if op in ("symm_gemm", "gemm_add", "gemm_apply") and lists and lists[0][0].dtype != lists[1][0].dtype:
        return f"operands of two dtypes, {lists[0][0].dtype} and {lists[1][0].dtype}"
    return None
