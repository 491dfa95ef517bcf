"""What the kernel backends ask of a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Makes a CUDA device current if it is not; nothing happens for the CPU, where Triton's interpreter runs."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        yield
    else:
        with torch.cuda.device(device):
            yield


def current_stream(device: torch.device) -> int:
    """The address of the current CUDA stream, without the object around it, which takes microseconds to make."""
    return torch._C._cuda_getCurrentRawStream(device.index)


@cache
def capability(device: torch.device) -> int:
    """The compute capability as one number: 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
