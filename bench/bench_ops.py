"""Single ops: every backend beside torch's own routines and the floor, in CUDA graphs of many calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from muon_kernels import backends, use_backend

from .cells import OPS, SMOKE_OPS, OpCell
from .floors import op_cost
from .gate import FACTOR, GateRefused
from .lab import Lab
from .measure import measure_calls, measure_graph
from .op_kinds import KINDS, NARROW, WIDE, OpKind, Tensors
from .peers import Provider
from .results import Mode
from .timing import capture, cold_copies

FLOOR = 1e-3
PROVIDERS = [
    *(Provider(f"ours-{name}", None, ours=True, tier=0) for name in backends.NAMES if name != "reference"),
    Provider("torch", None, tier=0),
    Provider("ours-reference", None, ours=True),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cells = SMOKE_OPS if metafunc.config.getoption("smoke") else OPS
    rows = [(cell, provider, mode) for cell in cells for provider in PROVIDERS for mode in ("call", "graph")]
    metafunc.parametrize(("cell", "provider", "mode"), rows)


def test_op(benchmark: Any, lab: Lab, cell: OpCell, provider: Provider, mode: Mode) -> None:
    lab.drop("subject")
    lab.drop("call")
    with lab.attempt("ops", cell, provider.name, mode, ours=provider.ours):
        _measure(benchmark, lab, cell, provider, mode)


def _measure(benchmark: Any, lab: Lab, cell: OpCell, provider: Provider, mode: Mode) -> None:
    kind = KINDS[cell.kind]
    minimal, dense, size = op_cost(cell.kind, cell.rows, cell.cols, cell.count, WIDE.itemsize, NARROW.itemsize)
    inputs = lab.kept("inputs", ("ops", cell), lambda: _inputs(lab, cell, size))
    run = _runner(kind, provider)
    accuracy = check(
        kind, run, inputs[0], symmetric=kind.symmetric and provider.name not in ("torch", "ours-reference")
    )
    benchmark.group = f"op {cell}"
    benchmark.extra_info.update(
        provider.as_info(),
        bench="ops",
        cell=str(cell),
        mode=mode,
        flops_minimal=minimal,
        flops_dense=dense,
        bytes=size,
        floor_s=lab.ceilings.floor(minimal, size),
        accuracy=accuracy,
    )
    if mode == "graph":
        graph, _ = capture(run, inputs)
        measure_graph(benchmark, lab, graph, len(inputs))
    else:
        measure_calls(benchmark, lab, run, inputs)


def check(kind: OpKind, run: Callable[[Tensors], object], inputs: Tensors, *, symmetric: bool) -> dict[str, float]:
    """Error of a call against the reference in float64 on the same inputs, at most twice that in the same dtype.

    Raises:
        GateRefused: too far off, not written, or not symmetric to the bit where that is promised.
    """
    found, plain, truth = _copy(inputs), _copy(inputs), _copy(inputs, torch.float64)
    for name in kind.fresh:
        for t in found[name]:
            t.fill_(torch.nan)
    run(found)
    with use_backend("reference"):
        kind.ours(plain)
        kind.ours(truth)
    errors = {name: _distance(found[name], truth[name]) for name in kind.results}
    for name, error in errors.items():
        limit = FACTOR * _distance(plain[name], truth[name]) + FLOOR
        if not error <= limit:
            raise GateRefused(f"error of {name} {error:.3g} is over its limit {limit:.3g}")
    if symmetric and not all(bool((t == t.mT).all()) for t in found["out"]):
        raise GateRefused("the result is not symmetric to the bit")
    return {"error": max(errors.values())}


def _runner(kind: OpKind, provider: Provider) -> Callable[[Tensors], object]:
    if not provider.ours:
        return kind.torch

    def run(tensors: Tensors) -> None:
        with use_backend(provider.name.removeprefix("ours-")):
            kind.ours(tensors)

    return run


def _inputs(lab: Lab, cell: OpCell, size: int) -> list[Tensors]:
    return [KINDS[cell.kind].make(cell, lab.device, 10_000 * i) for i in range(cold_copies(lab.device, size))]


def _copy(tensors: Tensors, dtype: torch.dtype | None = None) -> Tensors:
    return {name: [t.to(dtype or t.dtype, copy=True) for t in group] for name, group in tensors.items()}


def _distance(found: list[Tensor], truth: list[Tensor]) -> float:
    """The largest of ||x - y|| / ||y||; NaN counts as infinite."""
    ratios = [(x.double() - y).norm() / y.norm() for x, y in zip(found, truth, strict=True)]
    return float(torch.stack(ratios).nan_to_num(nan=torch.inf).max())
