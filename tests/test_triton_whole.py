"""What Triton launches for `orthogonalize` in one call, over a driver that writes down; no GPU is needed."""

import os
from functools import partial
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter has no driver", allow_module_level=True)

import triton
from test_triton_launch import launched, record  # noqa: F401
from test_triton_replay import Graph, card  # noqa: F401
from triton.runtime import driver

from muon_kernels.backends.triton import chains, gemm_add, normalize, sum_squares, warm_up, whole
from muon_kernels.backends.triton.launch import ALIGNMENT
from muon_kernels.coefficients import resolve_coefficients
from muon_kernels.orthogonalize import chain_plan
from muon_kernels.program import view

GROUPS = ((2, 16, 48), (1, 48, 16), (1, 9, 5))

SUMS = {"sum_squares_kernel": 1, "normalize_kernel": 2}
"""Which argument they are."""


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """Where each call finds its memory: at the same place, as on a card. Notes the sizes of what was asked for."""
    monkeypatch.setattr(whole, "_plans", {})
    space, asked = torch.empty(2**18, dtype=torch.float16), []

    def empty(size, dtype, device):
        assert dtype == torch.float16
        asked.append(size)
        return space[:size]

    monkeypatch.setattr(whole, "torch", SimpleNamespace(**{**vars(torch), "empty": empty}))
    return SimpleNamespace(space=space, asked=asked)


class Matrices:
    """Matrices, and where they go."""

    def __init__(self, groups=GROUPS, dtype=torch.bfloat16, out_dtype=torch.float32, method="auto"):
        self.plan = chain_plan(groups, resolve_coefficients("original", 3), method, torch.float16, True)
        self.xs = [torch.empty(group, dtype=dtype) for group in groups]
        self.outs = [torch.empty(group, dtype=out_dtype) for group in groups]
        self.launches = None

    def run(self, eps=1e-7, safety_factor=1.5):
        assert whole.orthogonalize(self.plan, self.xs, self.outs, eps=eps, safety_factor=safety_factor) == [True]

    def run_ops(self, space, eps=1e-7, safety_factor=1.5):
        workspace = space[: self.plan.program.elements]
        normalised = [view(workspace, buffer) for buffer in self.plan.normalised]
        normalize.normalize(self.xs, None, normalised, eps=eps, safety_factor=safety_factor)
        names = ("buffers", "products", "scalars", "chains")
        chains.chains([workspace], **{name: getattr(self.plan.program, name) for name in names})
        gemm_add.gemm_add(*self.plan.last_products(workspace), [], self.outs, alpha=1.0, beta=0.0)

    def calls(self, count):
        """Calls; says how the launches of the chains came: "launched", "recorded" or "replayed"."""
        came = []
        for _ in range(count):
            recorded, replayed = len(Graph.every), sum(graph.replays for graph in Graph.every)
            found = launched(self.run)
            self.launches = self.launches or found
            assert found == self.launches
            replays = sum(graph.replays for graph in Graph.every) - replayed
            came.append("recorded" if len(Graph.every) > recorded else "replayed" if replays else "launched")
        return came


def without_sums(launches):
    """The launches, and where they find sums."""
    others = [(name, grid, [x for i, x in enumerate(args) if SUMS.get(name) != i]) for name, grid, args in launches]
    return others, [args[SUMS[name]] for name, _, args in launches if name in SUMS]


@pytest.mark.parametrize("method", ["auto", "squaring"])
@pytest.mark.parametrize("groups", [GROUPS, GROUPS[:1]], ids=str)
def test_the_launches_of_the_ops(groups, method, memory):
    """Planned once, and bound to the tensors and numbers of each call."""
    each = [Matrices(groups, method=method) for _ in range(2)]
    for matrices in (*each, each[0]):
        for options in ({}, {"eps": 1.0, "safety_factor": 2.0}):
            found, sums = without_sums(launched(partial(matrices.run, **options)))
            expected, _ = without_sums(launched(partial(matrices.run_ops, memory.space, **options)))
            assert found == expected
            start = memory.space.data_ptr() + 2 * matrices.plan.program.elements
            end = memory.space.data_ptr() + 2 * memory.asked[-1]
            assert sums[::2] == sums[1::2] == sorted(set(sums[::2])) and len(sums) == 2 * len(groups)
            assert all(address % ALIGNMENT == 0 and start <= address < end for address in sums)
            ends = [at + 8 * len(x) * sum_squares.parts(x) for at, x in zip(sums[::2], matrices.xs, strict=True)]
            assert all(one <= other for one, other in zip(ends, [*sums[2::2], end], strict=True))
    assert len(whole._plans) == 1


def test_one_allocation_a_call(memory):
    matrices = Matrices()
    matrices.run()
    memory.asked.clear()
    for _ in range(4):
        matrices.run()
    assert len(memory.asked) == 4


def test_plans_are_for_what_looks_alike(monkeypatch):
    plain = Matrices(GROUPS[:1])
    unaligned = Matrices(GROUPS[:1])
    unaligned.xs = [torch.empty(2 * 16 * 48 + 1, dtype=torch.bfloat16)[1:].view(GROUPS[0])]
    transposed = Matrices(GROUPS[:1])
    transposed.outs = [torch.empty(2, 48, 16).mT]
    others = [Matrices(GROUPS[:1], dtype=torch.float32), Matrices(GROUPS[:1], out_dtype=torch.bfloat16)]
    for count, matrices in enumerate((plain, unaligned, transposed, *others, Matrices(GROUPS[1:2])), 1):
        matrices.run()
        assert len(whole._plans) == count
    monkeypatch.setattr(driver.active, "get_current_device", lambda: 81)
    plain.run()
    assert len(whole._plans) == count + 1
    handles = [[launch.launch.compiled for launch in plan._last] for plan in whole._plans.values()]
    assert handles[0] != handles[-1]
    monkeypatch.setattr(whole, "MOST_PLANS", 2)
    Matrices(GROUPS[2:]).run()
    assert len(whole._plans) == 1


def test_chains_are_replayed_from_the_third_call_on():
    assert Matrices().calls(5) == ["launched", "launched", "recorded", "replayed", "replayed"]
    assert len(Graph.every) == 1
    assert Matrices().calls(2) == ["replayed"] * 2  # other matrices, on the same memory


def test_another_stream_has_chains_of_its_own(card):  # noqa: F811
    matrices = Matrices()
    matrices.calls(4)
    card.stream = 5
    assert matrices.calls(4) == ["launched", "launched", "recorded", "replayed"]


def test_a_captured_stream_gets_the_launches(card):  # noqa: F811
    matrices = Matrices()
    matrices.calls(4)
    card.capturing = True
    assert matrices.calls(2) == ["launched"] * 2
    card.capturing = False
    assert matrices.calls(1) == ["replayed"]


def test_warm_up_compiles_and_launches_nothing(monkeypatch):
    matrices = Matrices()
    for _ in range(4):
        assert not launched(lambda: warm_up(matrices.run))
    monkeypatch.setattr(triton.JITFunction, "warmup", None)
    assert matrices.calls(3) == ["launched", "launched", "recorded"]


@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook"])
def test_hooks_see_every_launch(name, monkeypatch):
    matrices, seen = Matrices(), []
    matrices.calls(4)
    monkeypatch.setattr(triton.knobs.runtime, name, lambda metadata: seen.append(name))
    assert matrices.calls(1) == ["launched"]
    assert len(seen) == len(matrices.launches)
