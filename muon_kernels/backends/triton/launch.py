"""One launch of a kernel as a value: it can be run, or only compiled.

Triton compiles a kernel again for every integer argument that turns to 1 or becomes (un)divisible by 16. That is
wanted for extents and strides, where it decides how wide loads are, and unwanted for addresses and counts: those
travel through `unspecialized` as odd numbers, and a kernel reads them back with `>> 1`.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton

from ..device import on_device

ALIGNMENT = 16
"""Bytes: the widest load of a thread."""


_compile_only: contextvars.ContextVar[bool] = contextvars.ContextVar("muon_kernels_triton_compile_only", default=False)


@dataclass(frozen=True)
class Launch:
    """A kernel, its grid, its arguments by name, and how Triton is to compile it."""

    kernel: triton.JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int
    stages: int = 1

    def run(self) -> None:
        """Enqueues the kernel on the current stream of the current device."""
        self.kernel[self.grid](**self.arguments, num_warps=self.warps, num_stages=self.stages)

    def compile(self) -> Any:
        """Compiles the kernel for the current device, unless that was done before; returns Triton's handle."""
        return self.kernel.warmup(**self.arguments, grid=self.grid, num_warps=self.warps, num_stages=self.stages)


def run(launches: Iterable[Launch], device: torch.device) -> None:
    """Enqueues the launches, in order, on the current stream of `device`."""
    with on_device(device):
        for launch in launches:
            if _compile_only.get():
                launch.compile()
            else:
                launch.run()


def warm_up(call: Callable[[], object]) -> None:
    """Makes `call()` with every kernel of this backend compiled instead of run, so that no later step compiles.

    Kernels depend on dtypes, shapes and strides only, so that `call` may work on scratch tensors:

        warm_up(lambda: orthogonalize(torch.empty(48, 768, 768, device="cuda", dtype=torch.bfloat16)))

    What the kernels would have written is left as it was.
    """
    token = _compile_only.set(True)
    try:
        call()
    finally:
        _compile_only.reset(token)


@cache
def processors(device: torch.device) -> int:
    """The number of multiprocessors."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def unspecialized(value: int) -> int:
    """`value` in a form that no kernel is specialised for; value >= 1."""
    return 2 * value + 1
