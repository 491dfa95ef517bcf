"""What the kernel backends ask of a CUDA device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a CUDA device current if it is not; nothing happens for the CPU, where Triton's interpreter runs."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def current_stream(device: torch.device) -> int:
    """The address of the current CUDA stream, without the object around it, which takes microseconds to make."""
    return torch._C._cuda_getCurrentRawStream(device.index)


@cache
def capability(device: torch.device) -> int:
    """The compute capability as one number: 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
