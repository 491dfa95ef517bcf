"""The measurement itself: rounds under pytest-benchmark with the run's clock, and its line for the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from .lab import Lab
from .timing import seconds_of

WARMUP_ROUNDS = 2
ROW_SECONDS, FEWEST_CALLS, MOST_CALLS = 0.1, 4, 10

T = TypeVar("T")


def measure_calls(benchmark: Any, lab: Lab, call: Callable[[T], object], inputs: Sequence[T]) -> None:
    """Times single calls, each from an idle device and with the next input."""
    rounds = lab.rounds(seconds_of(lab.device, lambda: call(inputs[-1])))
    turn = iter(range(rounds + WARMUP_ROUNDS))
    lab.clock.calls = 1
    benchmark.pedantic(
        call, setup=lambda: ((inputs[next(turn) % len(inputs)],), {}), rounds=rounds, warmup_rounds=WARMUP_ROUNDS
    )
    _announce(benchmark, lab)


def measure_queued(benchmark: Any, lab: Lab, call: Callable[[], object]) -> None:
    """Times rows of calls, of which only the first finds the device idle, as in training, where the host is ahead; the
    time is that of one call."""
    calls = math.ceil(ROW_SECONDS / seconds_of(lab.device, call))
    calls = max(FEWEST_CALLS, min(MOST_CALLS, calls))

    def row() -> None:
        for _ in range(calls):
            call()

    rounds = lab.rounds(seconds_of(lab.device, row))
    lab.clock.calls = calls
    benchmark.pedantic(row, rounds=rounds, warmup_rounds=1)
    _announce(benchmark, lab)


def measure_graph(benchmark: Any, lab: Lab, graph: torch.cuda.CUDAGraph, calls: int) -> None:
    """Times replays of a graph of `calls` calls; the time is that of one call."""
    rounds = lab.rounds(seconds_of(lab.device, graph.replay))
    lab.clock.calls = calls
    benchmark.pedantic(graph.replay, rounds=rounds, warmup_rounds=WARMUP_ROUNDS)
    _announce(benchmark, lab)


def _announce(benchmark: Any, lab: Lab) -> None:
    info, stats = benchmark.extra_info, benchmark.stats.stats
    lab.news.append(
        f"{info['bench']} {info['cell']}  {info['provider']} ({info['mode']})  {stats.median * 1e3:.4g} ms"
        f" ±{stats.iqr / stats.median:.1%}  {stats.median / info['floor_s']:.2f} x floor"
        f"  error {info['accuracy']['error']:.2g}"
    )
