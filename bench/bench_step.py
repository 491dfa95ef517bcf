"""A whole optimizer step: time from an idle device, one behind the other and in a CUDA graph, memory, the host's share,
and the first step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from .cells import SMOKE_STEP, STEP, StepCell
from .floors import step_bytes, step_flops
from .gate import Accuracy, Judge
from .lab import Lab
from .measure import measure_calls, measure_graph, measure_queued
from .peers import STEPPERS, Stepper
from .peers.base import LR
from .results import Mode
from .timing import capture, random_normal, seconds_of, synchronize

HOST_REPEATS = 10


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cells = SMOKE_STEP if metafunc.config.getoption("smoke") else STEP
    rows = [(cell, provider, mode) for cell in cells for provider in STEPPERS for mode in get_args(Mode)]
    metafunc.parametrize(("cell", "provider", "mode"), rows)


def test_step(benchmark: Any, lab: Lab, cell: StepCell, provider: Stepper, mode: Mode) -> None:
    where = ("step", cell, provider.name, mode)
    if reason := provider.why_not(cell, mode):
        lab.skip(*where, reason)
    lab.drop("inputs")
    lab.drop("call")
    with lab.attempt(*where, ours=provider.ours):
        subject = lab.kept("subject", ("step", cell, provider.name), lambda: Subject(lab.device, cell, provider))
        _measure(benchmark, lab, cell, subject, mode)


class Subject:
    """A model's parameters under one optimizer, its first step taken and judged: what all modes share."""

    def __init__(self, device: torch.device, cell: StepCell, provider: Stepper) -> None:
        self.device = device
        self.provider = provider
        if provider.compiles:
            torch.compiler.reset()
        self.params = [Parameter(torch.zeros(shape, dtype=cell.dtype, device=device)) for shape in cell.shapes]
        for i, p in enumerate(self.params):
            p.grad = self._gradient(i)
        self._held = self._allocated() + sum(p.numel() * p.element_size() for p in self.params)
        self.optimizer = provider.build(self.params)
        self.step: Callable[[], object] = provider.wrap(self.optimizer.step)
        self.first_step = seconds_of(device, self.step)
        self.accuracy = self._judge()
        self.settle(self.step)

    def check(self, step: Callable[[], object]) -> Accuracy:
        """The accuracy of a step from zero: parameters and momenta at rest, gradients as at the start."""
        for i, p in enumerate(self.params):
            assert p.grad is not None
            p.data.zero_()
            p.grad.copy_(self._gradient(i))
            for value in self.optimizer.state[p].values():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    value.zero_()
        step()
        return self._judge()

    def settle(self, step: Callable[[], object]) -> None:
        """Random parameters, and a few steps that nobody times."""
        for i, p in enumerate(self.params):
            p.data.copy_(random_normal(self.device, p.shape, p.dtype, i).mul_(0.02))
        for _ in range(3):
            step()

    def extra_bytes(self) -> int | None:
        """What a step needs at its peak beyond parameters, gradients and one momentum for each."""
        if self.device.type != "cuda":
            return None
        torch._C._cuda_clearCublasWorkspaces()  # as for what was held before: nobody's
        torch.cuda.reset_peak_memory_stats(self.device)
        self.step()
        synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - self._held

    def enqueue(self) -> float:
        """Seconds until the host has handed a step over to an idle device."""
        times = []
        for _ in range(HOST_REPEATS):
            synchronize(self.device)
            start = time.perf_counter()
            self.step()
            times.append(time.perf_counter() - start)
        synchronize(self.device)
        return statistics.median(times)

    def _judge(self) -> Accuracy:
        """A first step leaves -lr * scale * (the promised polynomial of the gradient); the worst of all parameters."""
        return max((self._judge_one(i, p) for i, p in enumerate(self.params)), key=lambda found: found.error)

    def _judge_one(self, i: int, p: Parameter) -> Accuracy:
        gradient, promise = self._gradient(i)[None], self.provider.promise
        assert promise is not None
        update = p.data.float().neg()[None]
        if self.provider.rule is not None:
            update /= LR * self.provider.rule(p.shape)
        else:
            update *= float(promise.evaluate(gradient, torch.float64).norm()) / float(update.norm())
        return Judge(gradient).check(update, promise)

    def _gradient(self, i: int) -> Tensor:
        p = self.params[i]
        return random_normal(self.device, p.shape, p.dtype, 1000 + i)

    def _allocated(self) -> int:
        if self.device.type != "cuda":
            return 0
        torch._C._cuda_clearCublasWorkspaces()  # of the ceilings' and the accuracy gate's products
        return torch.cuda.memory_allocated(self.device)


def _measure(benchmark: Any, lab: Lab, cell: StepCell, subject: Subject, mode: Mode) -> None:
    provider, accuracy = subject.provider, subject.accuracy
    extra, host = (subject.extra_bytes(), subject.enqueue()) if mode == "call" else (None, None)
    if mode == "graph":
        graph, _ = capture(lambda _: subject.step(), [None])
        accuracy = subject.check(graph.replay)
        subject.settle(graph.replay)
    minimal, dense = step_flops(cell.counts)
    size = step_bytes(cell.counts, cell.dtype.itemsize)
    benchmark.group = f"step {cell}"
    benchmark.extra_info.update(
        provider.as_info(),
        bench="step",
        cell=str(cell),
        mode=mode,
        dtype=str(cell.dtype).removeprefix("torch."),
        flops_minimal=minimal,
        flops_dense=dense,
        bytes=size,
        floor_s=lab.ceilings.floor_in_turn(minimal, size),
        first_call_s=subject.first_step,
        enqueue_s=host,
        extra_bytes=extra,
        accuracy=accuracy.as_info(),
    )
    if mode == "graph":
        measure_graph(benchmark, lab, graph, 1)
    elif mode == "queued":
        measure_queued(benchmark, lab, subject.step)
    else:
        measure_calls(benchmark, lab, lambda _: subject.step(), [None])
