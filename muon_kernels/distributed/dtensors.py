"""DTensors seen without importing their module."""

from __future__ import annotations

import sys

from torch import Tensor


def is_dtensor(tensor: Tensor) -> bool:
    """Whether `tensor` is a DTensor. Who has one has imported their module, which takes 0.4 s; others need not."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def grad_like_param(param: Tensor) -> Tensor:
    """The gradient of a parameter, which it must have, in the parameter's placements: a collective if it has others."""
    grad: Tensor = param.grad  # type: ignore[assignment]
    if is_dtensor(param) and grad.placements != param.placements:  # type: ignore[attr-defined]
        return grad.redistribute(param.device_mesh, param.placements)  # type: ignore[attr-defined]
    return grad
