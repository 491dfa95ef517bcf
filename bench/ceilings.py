"""What this device reaches in this run with the best general routines: 16-bit products and a copy."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .environment import gpu_state
from .timing import DeviceClock, capture, cold_copies, random_normal

GEMM_SIDES = (8192, 4096, 2048, 768)
BATCHED = (48, 768)
COPY_BYTES = 2**30
SMOKE_SIDES = (64,)
SMOKE_BATCHED = (2, 32)
SMOKE_COPY_BYTES = 2**20
REPEATS = 11


@dataclass(frozen=True)
class Ceilings:
    """gemm: FLOP/s of bfloat16 products by name. copy: bytes read plus written per second. state: clocks under load."""

    gemm: dict[str, float]
    copy: float
    state: dict[str, str]

    @property
    def flops(self) -> float:
        """The best product rate."""
        return max(self.gemm.values())

    def floor(self, flops: float, size: float) -> float:
        """Seconds below which work cannot go: arithmetic and traffic may overlap, so the larger of the two."""
        return max(flops / self.flops, size / self.copy)

    def floor_in_turn(self, flops: float, size: float) -> float:
        """Seconds of arithmetic and traffic one after the other, as in an optimizer step's phases."""
        return flops / self.flops + size / self.copy


def measure_ceilings(device: torch.device, *, smoke: bool) -> Ceilings:
    """Medians of repeated products and copies on random data."""
    shapes = [(1, side) for side in (SMOKE_SIDES if smoke else GEMM_SIDES)] + [SMOKE_BATCHED if smoke else BATCHED]
    gemm = {f"{batch}x{side}": _product_rate(device, batch, side) for batch, side in shapes}
    size = SMOKE_COPY_BYTES if smoke else COPY_BYTES
    source = random_normal(device, (size // 4,), torch.float32, 0)
    target = torch.empty_like(source)
    copy = 2 * size / _median(device, lambda: target.copy_(source))
    return Ceilings(gemm, copy, _state_under_load(device))


def _product_rate(device: torch.device, batch: int, side: int) -> float:
    copies = cold_copies(device, 2 * 2 * batch * side * side)
    pairs = [
        tuple(random_normal(device, (batch, side, side), torch.bfloat16, seed) for seed in (2 * i, 2 * i + 1))
        for i in range(copies)
    ]
    out = torch.empty_like(pairs[0][0])

    def product(pair: tuple[torch.Tensor, ...]) -> None:
        torch.bmm(*pair, out=out)

    if device.type == "cuda":
        graph, _ = capture(product, pairs)
        seconds = _median(device, graph.replay) / copies
    else:
        seconds = _median(device, lambda: product(pairs[0]))
    return 2 * batch * side**3 / seconds


def _median(device: torch.device, function: Callable[[], object]) -> float:
    clock = DeviceClock(device)
    times = []
    for _ in range(REPEATS + 3):
        start = clock.read()
        function()
        times.append(clock.read() - start)
    return statistics.median(times[3:])


def _state_under_load(device: torch.device) -> dict[str, str]:
    """Clocks read while products are running: an idle card's say nothing."""
    if device.type != "cuda":
        return {}
    x = random_normal(device, (8192, 8192), torch.bfloat16, 0)
    for _ in range(1500):  # about two seconds of work, queued
        torch.mm(x, x)
    state = gpu_state(device)
    torch.cuda.synchronize(device)
    return state
