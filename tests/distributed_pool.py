"""Processes that are started once for each world size and then sent jobs: functions that run on every rank."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

JOB_SECONDS = 60

IMPORTED_ONCE = ["torch._dynamo", "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp"]
"""What takes a process longest: imported by a server that all processes are forked from. What is tested is not among
these: the server would not find it where the tests do."""


def _serve(rank: int, world: int, rendezvous: str, pipe: Connection) -> None:
    gc.freeze()  # what was imported is never garbage: a benchmark's gc.collect() need not visit it
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world, timeout=timedelta(seconds=20)
    )
    while (job := pipe.recv()) is not None:
        function, args = job
        try:
            pipe.send(("returned", function(*args)))
        except BaseException:
            pipe.send(("raised", traceback.format_exc()))


def _answer(pipe: Connection, seconds: float) -> tuple[str, Any]:
    try:
        return pipe.recv() if pipe.poll(seconds) else ("raised", "no answer in time")
    except EOFError:
        return ("raised", "the process ended")


class Pool:
    """`world` processes with gloo, which must answer within `seconds`."""

    def __init__(self, world: int, rendezvous: str, seconds: float = JOB_SECONDS) -> None:
        self._seconds = seconds
        context = get_context("forkserver")
        context.set_forkserver_preload(IMPORTED_ONCE)
        self._pipes, self._processes = [], []
        threads = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"
        for rank in range(world):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world, rendezvous, there), daemon=True)
            process.start()
            self._pipes.append(here)
            self._processes.append(process)
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads

    def run(self, job: Callable[..., Any], *args: Any) -> list[Any]:
        """What `job(*args)` returned on every rank; an AssertionError with its traceback if it raised on any."""
        answers = self.answers(job, *args)
        failed = [f"rank {rank}: {text}" for rank, (how, text) in enumerate(answers) if how == "raised"]
        assert not failed, "\n".join(failed)
        return [value for _, value in answers]

    def answers(self, job: Callable[..., Any], *args: Any) -> list[tuple[str, Any]]:
        """("returned", value) or ("raised", text) of every rank."""
        for pipe in self._pipes:
            pipe.send((job, args))
        return [_answer(pipe, self._seconds) for pipe in self._pipes]

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.kill()
            process.join()
