"""Launches that repeat, replayed as a CUDA graph: one call for the host instead of one for each."""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import cache

import torch
from torch import Tensor

from .launch import INTERPRETED, Launch, compiles_only, hooks, run, scratch

CALLS_BEFORE = 2
"""Recording takes the host longer than a call: not for one that may never come again."""

_recording = threading.Lock()
"""Of the streams to record on: a device has one."""


class Replay:
    """Launches that are made again and again, with the same arguments and on the same stream, one call at a time.

    Kernels that load through tensor descriptors ask for memory for them at each launch. Those of a graph follow each
    other, so that one tensor serves all of them. It is allocated on the stream that the graph is replayed on: when the
    graph is gone, only what comes behind its last replay can get that memory.
    """

    def __init__(self, launches: list[Launch]) -> None:
        self._launches = launches
        self._calls = 0
        self._scratch_bytes = 0
        self._scratch: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def run(self, device: torch.device) -> None:
        """Enqueues the launches, in order, on the current stream of `device`, which is current.

        To record them is tried once: where CUDA cannot (out of memory, say), the launches do without a graph, as a step
        that has begun must come to its end.
        """
        if not self._repeats():
            run(self._launches, device)
            return
        if self._calls <= CALLS_BEFORE:
            self._calls += 1
            if self._calls <= CALLS_BEFORE:
                run(self._launches, device, self._measured_scratch)
                return
            with suppress(RuntimeError):
                self._record(device)
        if self._graph is None:
            run(self._launches, device)
        else:
            self._graph.replay()

    def _repeats(self) -> bool:
        """Whether a graph would do what the launches do, and in fewer calls.

        A graph that the caller captures takes the launches themselves, and hooks of a profiler see only those.
        """
        return not (
            INTERPRETED
            or len(self._launches) < 2
            or compiles_only()
            or torch.cuda.is_current_stream_capturing()
            or any(hooks())
        )

    def _measured_scratch(self, size: int, alignment: int, stream: int | None) -> Tensor:
        self._scratch_bytes = max(self._scratch_bytes, size)
        return scratch(size, alignment, stream)

    def _record(self, device: torch.device) -> None:
        """Until torch 2.13 a capture holds torch's default generator: random numbers that another thread draws on the
        device meanwhile, or that anyone draws after a capture that failed, raise there (pytorch/pytorch#172390)."""
        # Before capture begins: else it would be in a pool of the graph's own, of 2 MiB at least.
        memory = torch.empty(self._scratch_bytes, dtype=torch.int8, device=device)
        graph = torch.cuda.CUDAGraph()
        # Not by torch.cuda.graph, which waits for the device and empties the allocator's cache.
        with _recording, torch.cuda.stream(_stream(device)):
            graph.capture_begin(capture_error_mode="relaxed")
            try:
                run(self._launches, device, lambda size, alignment, stream: memory)
            finally:
                graph.capture_end()
        self._scratch, self._graph = memory, graph


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """To record on: the caller's may be the default one, which cannot be captured."""
    return torch.cuda.Stream(device)
