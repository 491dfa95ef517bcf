"""Device-synchronised time, cold inputs, and CUDA graphs of many calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")


MOST_COPIES = 128
"""Enough for 768 x 768 in 16 bit on any card so far; only test shapes need more."""


class DeviceClock:
    """A timer for pytest-benchmark that reads seconds of device time per call.

    On a GPU a reading waits for everything before it and is taken by an event, so that the span between two readings
    runs from an idle device to an idle device: launches, gaps between kernels and kernels.
    """

    def __init__(self, device: torch.device) -> None:
        self.calls = 1  # calls between two readings; set it while nothing is being timed
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
        self._last = self._mark() if self._cuda else None

    def read(self) -> float:
        """Seconds so far, divided by `calls`."""
        if not self._cuda:
            return time.perf_counter() / self.calls
        # A sum of short spans in double: events return float32 milliseconds, too coarse a few minutes after the first.
        now = self._mark()
        assert self._last is not None
        self._seconds += self._last.elapsed_time(now) / 1e3
        self._last = now
        return self._seconds / self.calls

    @staticmethod
    def _mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        return event


def synchronize(device: torch.device) -> None:
    """Waits for the device; a CPU has nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cold_copies(device: torch.device, size: int) -> int:
    """How many inputs of `size` bytes to rotate among so that none is still in the L2 cache when its turn comes.

    Together they are at least twice the cache, or MOST_COPIES.
    """
    if device.type != "cuda":
        return 1
    return min(MOST_COPIES, -(-2 * torch.cuda.get_device_properties(device).L2_cache_size // size))


def seconds_of(device: torch.device, function: Callable[[], object]) -> float:
    """Wall time of one call, device included."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def capture(function: Callable[[T], R], inputs: Sequence[T]) -> tuple[torch.cuda.CUDAGraph, R]:
    """A graph of one call for each input, and the result of the first, which a replay rewrites."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function(inputs[0])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        first = function(inputs[0])
        for item in inputs[1:]:
            function(item)
    return graph, first


def microseconds(call: Callable[[], object], calls: int = 10, replays: int = 15) -> float:
    """Median over `replays` of the time of one call within a CUDA graph of `calls`."""
    graph, _ = capture(lambda _: call(), [None] * calls)
    graph.replay()
    times = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / calls)
    return statistics.median(times)


def random_normal(device: torch.device, shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    """Random data: some GPUs run faster on zeros."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=device).to(dtype)
