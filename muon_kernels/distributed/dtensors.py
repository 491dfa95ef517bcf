"""DTensors seen without importing their module."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor


def is_dtensor(tensor: Tensor) -> bool:
    """Whether `tensor` is a DTensor. Who has one has imported their module, which takes 0.4 s; others need not."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, sharing its memory; any other tensor as it is.

    What `to_local` returns without gradients, but never the new view that it makes of a parameter's (torch 2.13, 1 us).
    """
    return tensor._local_tensor if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def spec_and_local(tensor: Tensor) -> tuple[Any, Tensor]:
    """The shape, mesh and placements of a DTensor, as something to compare, of any other tensor its shape; `local`."""
    return (tensor._spec, tensor._local_tensor) if is_dtensor(tensor) else (tensor.shape, tensor)  # type: ignore[attr-defined]


def grad_like_param(param: Tensor) -> Tensor:
    """The gradient of a parameter, which it must have, in the parameter's placements: a collective if it has others."""
    grad: Tensor = param.grad  # type: ignore[assignment]
    if is_dtensor(param) and grad.placements != param.placements:  # type: ignore[attr-defined]
        return grad.redistribute(param.device_mesh, param.placements)  # type: ignore[attr-defined]
    return grad
