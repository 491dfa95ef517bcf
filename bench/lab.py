"""One benchmark run: its device, its budget, its ceilings, and a record of everything that gave no number."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import pytest
import torch

from muon_kernels import BackendUnavailable

from .ceilings import Ceilings, measure_ceilings
from .gate import GateRefused
from .timing import DeviceClock

MEASURE_SECONDS = 0.4
FEWEST_ROUNDS, MOST_ROUNDS = 5, 100

T = TypeVar("T")
Status = Literal["absent", "skipped", "refused", "failed"]


@dataclass(frozen=True)
class NoNumber:
    """A missing measurement: "absent" (not installed), "skipped" (by rule), "refused" (gate), "failed" (error)."""

    bench: str
    cell: str
    provider: str
    mode: str
    status: Status
    reason: str


class Absent(Exception):
    """A provider that is not installed or cannot run on this device."""


class Lab:
    """State of one run; `kept` holds what is expensive to prepare and shared by neighbouring measurements."""

    def __init__(self, device: torch.device, *, smoke: bool, budget: float | None) -> None:
        self.device = device
        self.smoke = smoke
        self.budget = budget
        self.clock = DeviceClock(device)
        self.missing: list[NoNumber] = []
        self.news: list[str] = []  # a line for each number, refusal and failure, until it is shown
        self.lost: str | None = None
        self._start = time.monotonic()
        self._kept: dict[str, tuple[Any, Any]] = {}

    @cached_property
    def ceilings(self) -> Ceilings:
        """Measured once, before the first number."""
        return measure_ceilings(self.device, smoke=self.smoke)

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._start

    def rounds(self, seconds: float) -> int:
        """How often to repeat something that takes this long."""
        wanted = 0 if self.smoke else round(MEASURE_SECONDS / seconds)
        return max(FEWEST_ROUNDS, min(MOST_ROUNDS, wanted))

    def kept(self, slot: str, key: Any, make: Callable[[], T]) -> T:
        """What `make` returned for this key; a slot holds one key's at a time."""
        if slot not in self._kept or self._kept[slot][0] != key:
            self._kept.pop(slot, None)
            self._free()
            self._kept[slot] = key, make()
        return self._kept[slot][1]

    def drop(self, slot: str) -> None:
        """Forgets what a slot holds."""
        if self._kept.pop(slot, None) is not None:
            self._free()

    @contextmanager
    def attempt(self, bench: str, cell: object, provider: str, mode: str, *, ours: bool) -> Iterator[None]:
        """Turns an exception into a record, so that it ends one measurement and not the run.

        A peer's failure is an expected one for pytest; ours fails the run. A device that no longer answers ends
        every later measurement, each with a record.
        """

        def record(status: Status, reason: str) -> None:
            self.missing.append(NoNumber(bench, str(cell), provider, mode, status, reason))
            if status in ("failed", "refused"):
                self.news.append(f"{bench} {cell}  {provider} ({mode})  {status}: {reason}")

        if self.lost or (self.budget is not None and self.elapsed > self.budget):
            reason = self.lost or f"time budget of {self.budget:.0f} s spent"
            record("skipped", reason)
            pytest.skip(reason)
        try:
            yield
        except (Absent, ImportError, BackendUnavailable) as error:
            record("absent", _describe(error))
            pytest.skip(_describe(error))
        except GateRefused as error:
            record("refused", str(error))
            if ours:
                raise
            pytest.xfail(str(error))
        except Exception as error:
            record("failed", _describe(error))
            self._after_failure(provider)
            if ours:
                raise
            pytest.xfail(_describe(error))

    def skip(self, bench: str, cell: object, provider: str, mode: str, reason: str) -> None:
        """Records a measurement that is left out by rule, and ends it."""
        self.missing.append(NoNumber(bench, str(cell), provider, mode, "skipped", reason))
        pytest.skip(reason)

    def as_info(self) -> dict[str, Any]:
        """For the results file."""
        return {
            "budget_seconds": self.budget,
            "elapsed_seconds": self.elapsed,
            "smoke": self.smoke,
            "ceilings": asdict(self.ceilings),
            "missing": [asdict(entry) for entry in self.missing],
        }

    def _after_failure(self, provider: str) -> None:
        self._kept.clear()
        try:
            self._free()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        except Exception as error:
            self.lost = f"the device stopped answering after {provider}: {_describe(error)}"

    def _free(self) -> None:
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def _describe(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
