"""What several ranks of one benchmark must do together: agree on time, on errors and on the slowest of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from .timing import seconds_of

MEASURE_SECONDS = 1.5
FEWEST_ROUNDS, MOST_ROUNDS = 5, 30


@dataclass(frozen=True)
class Timed:
    """Seconds of every round, each that of the slowest rank."""

    rounds: list[float]

    def as_stats(self) -> dict[str, float]:
        """As pytest-benchmark writes them."""
        quartiles = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return {
            "median": statistics.median(self.rounds),
            "iqr": quartiles[2] - quartiles[0],
            "min": min(self.rounds),
            "max": max(self.rounds),
            "rounds": len(self.rounds),
        }


class Ranks:
    """All ranks of the default process group, from the point of view of one of them."""

    def __init__(self, device: torch.device, *, smoke: bool, budget: float) -> None:
        self.device, self.smoke, self.budget = device, smoke, budget
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since this rank began."""
        return time.monotonic() - self._start

    def largest(self, value: float) -> float:
        """Over all ranks."""
        return self._reduced(value, dist.ReduceOp.MAX)

    def total(self, value: float) -> float:
        """Over all ranks."""
        return self._reduced(value, dist.ReduceOp.SUM)

    def in_time(self) -> bool:
        """Whether something new may begin: the same answer on every rank."""
        return self.largest(self.elapsed) < self.budget

    def time(self, step: Callable[[], object]) -> Timed:
        """Single steps, each from idle devices until the last device is done; two more come first."""
        guess = [self._slowest(step) for _ in range(2)][1]
        rounds = 2 if self.smoke else max(FEWEST_ROUNDS, min(MOST_ROUNDS, round(MEASURE_SECONDS / guess)))
        return Timed([self._slowest(step) for _ in range(rounds)])

    def _slowest(self, step: Callable[[], object]) -> float:
        self.largest(0.0)
        return self.largest(seconds_of(self.device, step))

    def _reduced(self, value: float, how: dist.ReduceOp.RedOpType) -> float:
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, how)
        return float(tensor)
