"""Orthogonalisation alone: time per call of every provider, as called and in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from .cells import ORTHOGONALIZE, SMOKE_ORTHOGONALIZE, MatrixCell
from .floors import dense_flops, matrix_bytes, minimal_flops
from .gate import Judge
from .lab import Lab
from .measure import measure_calls, measure_graph
from .peers import ORTHOGONALIZERS, Orthogonalizer
from .results import Mode
from .timing import capture, cold_copies, random_normal, seconds_of

DTYPE = torch.bfloat16
COMPILED_WARMUP = 4  # torch.compile's graph trees warm up, record and replay in their first three calls

Call = Callable[[Tensor], Tensor | Sequence[Tensor]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cells = SMOKE_ORTHOGONALIZE if metafunc.config.getoption("smoke") else ORTHOGONALIZE
    rows = [(cell, provider, mode) for cell in cells for provider in ORTHOGONALIZERS for mode in ("call", "graph")]
    metafunc.parametrize(("cell", "provider", "mode"), rows)


def test_orthogonalize(benchmark: Any, lab: Lab, cell: MatrixCell, provider: Orthogonalizer, mode: Mode) -> None:
    where = ("orthogonalize", cell, provider.name, mode)
    if reason := provider.why_not(cell, mode):
        lab.skip(*where, reason)
    lab.drop("subject")
    with lab.attempt(*where, ours=provider.ours):
        _measure(benchmark, lab, cell, provider, mode)


def _measure(benchmark: Any, lab: Lab, cell: MatrixCell, provider: Orthogonalizer, mode: Mode) -> None:
    inputs, judge = lab.kept("inputs", ("orthogonalize", cell), lambda: _inputs(lab, cell))
    call, first_call = lab.kept("call", ("orthogonalize", cell, provider.name), lambda: _load(lab, provider, inputs[0]))
    for _ in range(COMPILED_WARMUP if provider.compiles else 1):
        result = call(inputs[0])
    accuracy = judge.check(result, provider.promise)
    if mode == "graph":
        graph, result = capture(call, inputs)
        result = _poisoned(result)
        graph.replay()
        accuracy = judge.check(result, provider.promise)
    del result
    flops, size = minimal_flops(cell.rows, cell.cols, cell.batch), matrix_bytes(*cell.shape[1:], cell.batch, 2)
    benchmark.group = f"orthogonalize {cell}"
    benchmark.extra_info.update(
        provider.as_info(),
        bench="orthogonalize",
        cell=str(cell),
        rows=cell.rows,
        cols=cell.cols,
        batch=cell.batch,
        mode=mode,
        dtype="bfloat16",
        flops_minimal=flops,
        flops_dense=dense_flops(cell.rows, cell.cols, cell.batch),
        bytes=size,
        floor_s=lab.ceilings.floor(flops, size),
        first_call_s=first_call,
        accuracy=accuracy.as_info(),
    )
    if mode == "graph":
        measure_graph(benchmark, lab, graph, len(inputs))
    else:
        measure_calls(benchmark, lab, call, inputs)


def _inputs(lab: Lab, cell: MatrixCell) -> tuple[list[Tensor], Judge]:
    size = 2 * cell.rows * cell.cols * cell.batch
    copies = cold_copies(lab.device, size)
    inputs = [random_normal(lab.device, cell.shape, DTYPE, seed) for seed in range(copies)]
    return inputs, Judge(inputs[0])


def _load(lab: Lab, provider: Orthogonalizer, example: Tensor) -> tuple[Call, float]:
    """The provider's function and the seconds of its first call, in which it compiles what it compiles."""
    if provider.compiles:
        torch.compiler.reset()
    call = torch.no_grad()(provider.load())
    return call, seconds_of(lab.device, lambda: call(example))


def _poisoned(result: Tensor | Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
    """Filled with NaN, so that a replay that does not write its result is found out."""
    for matrix in [result] if isinstance(result, Tensor) else result:
        matrix.fill_(torch.nan)
    return result
