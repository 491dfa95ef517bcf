"""Seconds of training, and of these in the optimizer, without making a GPU wait in between."""

import time
from itertools import pairwise

import torch


class Clock:
    """A stop-watch for pieces of work in turns of two: everything else, the optimizer, everything else, and so on.

    On a GPU it records events, in whose order the device works, and waits for the device only when it is read. On a CPU
    it counts processor seconds, which other work on the machine does not lengthen; the command uses one thread.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[torch.cuda.Event] | list[float] = []

    def mark(self) -> None:
        """The first call starts the clock; every later one ends a piece of work and begins the next."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.process_time())

    def read(self) -> tuple[float, float]:
        """Seconds of all pieces and of every second piece since the last reading; the clock stands still then."""
        if self._device.type == "cuda":
            self._marks[-1].synchronize()
            pieces = [first.elapsed_time(second) / 1000 for first, second in pairwise(self._marks)]
        else:
            pieces = [second - first for first, second in pairwise(self._marks)]
        self._marks = []
        return sum(pieces), sum(pieces[1::2])
