"""The scalars of a step as the bindings take them: numbers, and addresses on the device."""

from __future__ import annotations

import torch
from torch import Tensor

Step = tuple[float, float, int, bool, int]
"""Weight decay, lr on the host, lr on the device and whether that is float64, found_inf."""


def address(name: str, value: Tensor | None, device: torch.device) -> int:
    """Of one float32 on `device`, or 0 for None."""
    if value is None:
        return 0
    if value.dtype != torch.float32 or value.device != device or value.numel() != 1:
        got = f"{value.dtype} {list(value.shape)} on {value.device}"
        raise ValueError(f"{name} must be one float32 on {device}, got {got}")
    return value.data_ptr()


def step_arguments(lr: float | Tensor, weight_decay: float, found_inf: Tensor | None, device: torch.device) -> Step:
    """An lr on the host is read now, one on the device when the kernel runs."""
    found = address("found_inf", found_inf, device)
    if not isinstance(lr, Tensor) or lr.device.type == "cpu":
        return weight_decay, float(lr), 0, False, found
    if lr.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"lr on the device must be float32 or float64, got {lr.dtype}")
    if lr.device != device:
        raise ValueError(f"lr must be on the CPU or on {device}, got {lr.device}")
    return weight_decay, 0.0, lr.data_ptr(), lr.dtype == torch.float64, found
