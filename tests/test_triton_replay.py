"""When Triton's chains are replayed as a graph, over a driver and a CUDAGraph that write down; no GPU is needed."""

import os
import weakref
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter has no graphs", allow_module_level=True)

import triton
from test_triton_launch import launched, record  # noqa: F401
from triton.runtime import _allocation, driver

from muon_kernels.backends.triton import chains, replay, warm_up
from muon_kernels.coefficients import resolve_coefficients
from muon_kernels.orthogonalize import Orthogonalizer
from muon_kernels.program import PRODUCT_FIELDS, SCALAR_FIELDS

SIDE_STREAM = 77


class Graph:
    """A CUDAGraph that takes what the driver would launch while it is captured, and launches that at a replay."""

    every: ClassVar[list["Graph"]] = []

    def __init__(self):
        self.replays = 0
        self.launches = None
        self.every.append(self)

    def capture_begin(self, capture_error_mode):
        assert capture_error_mode == "relaxed"
        assert driver.active.stream == SIDE_STREAM and replay._recording.locked()
        self.outside, driver.active.launched = driver.active.launched, []
        driver.active.capturing = True

    def capture_end(self):
        self.launches, driver.active.launched = driver.active.launched, self.outside
        driver.active.capturing = False

    def replay(self):
        assert driver.active.stream != SIDE_STREAM
        self.replays += 1
        driver.active.launched += self.launches


@contextmanager
def on_stream(stream):
    before, driver.active.stream = driver.active.stream, stream
    try:
        yield
    finally:
        driver.active.stream = before


@pytest.fixture(autouse=True)
def card(record, monkeypatch):  # noqa: F811
    """The driver, with streams and captures."""
    driver.active.stream, driver.active.capturing = 0, False
    monkeypatch.setattr(driver.active, "get_current_stream", lambda device: driver.active.stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: driver.active.capturing)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(replay, "_stream", lambda device: SIDE_STREAM)
    monkeypatch.setattr(Graph, "every", [])
    return driver.active


class Chain:
    """A program and a workspace, and what a call is to launch."""

    def __init__(self):
        options = {"method": "gram", "compute_dtype": torch.float16, "device": torch.device("cpu"), "factored": True}
        made = Orthogonalizer([(2, 16, 32)], resolve_coefficients("original", 3), **options)
        self.program, self.workspace = made.plan.program, made.workspace
        address = self.workspace.data_ptr()
        self.addresses = range(address, address + 2 * len(self.workspace))
        self.expected = None

    def run(self):
        names = ("buffers", "products", "scalars", "chains")
        chains.chains([self.workspace], **{name: getattr(self.program, name) for name in names})

    def call(self):
        """Calls; says how the launches came: "launched", "recorded" or "replayed"."""
        recorded, replayed = len(Graph.every), sum(graph.replays for graph in Graph.every)
        found = launched(self.run)
        assert len(found) == len(self.program.products) // PRODUCT_FIELDS
        for _, _, (a, b, _, out, *_) in found:
            assert all(address in self.addresses for ((address, *_),) in (a, b, out))
        self.expected = self.expected or found
        assert found == self.expected
        if len(Graph.every) > recorded:
            return "recorded"
        return "replayed" if sum(graph.replays for graph in Graph.every) > replayed else "launched"

    def calls(self, count):
        return [self.call() for _ in range(count)]


FIRST_CALLS = ["launched", "launched", "recorded", "replayed", "replayed"]


def test_from_the_third_call_on():
    assert Chain().calls(5) == FIRST_CALLS
    assert len(Graph.every) == 1


def test_places_of_a_workspace_have_a_graph_each():
    one, other = Chain(), Chain()
    assert one.calls(5) == other.calls(5) == FIRST_CALLS
    assert [one.call() if i % 2 else other.call() for i in range(6)] == ["replayed"] * 6
    assert len(Graph.every) == 2


def test_the_oldest_of_many_places_is_counted_anew():
    oldest, *others = (Chain() for _ in range(chains.MOST_KEPT + 1))
    assert oldest.calls(5) == FIRST_CALLS
    for other in others:
        assert other.calls(5) == FIRST_CALLS
    assert oldest.calls(5) == FIRST_CALLS
    assert others[-1].call() == "replayed"


def test_a_graph_stays_on_its_stream(card):
    """Of which its scratch memory is."""
    chain = Chain()
    assert chain.calls(5) == FIRST_CALLS
    card.stream = 5
    assert chain.calls(5) == FIRST_CALLS


def test_a_captured_stream_gets_the_launches_and_does_not_count(card):
    chain, *others = (Chain() for _ in range(chains.MOST_KEPT + 1))
    came = []
    for card.capturing in (False, True, True, False, True, False, True, False):
        came.append(chain.call())
    assert came == ["launched"] * 5 + ["recorded", "launched", "replayed"]
    card.capturing = True
    assert [other.call() for other in others] == ["launched"] * chains.MOST_KEPT
    card.capturing = False
    assert chain.call() == "replayed"  # its graph was not dropped for memory that is the other capture's


@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook"])
@pytest.mark.parametrize("chained", [True, False])
def test_hooks_see_the_launches(name, chained, monkeypatch):
    chain = Chain()
    chain.calls(4)
    hook = lambda metadata: None  # noqa: E731
    if chained:
        own = type(triton.knobs.runtime.launch_enter_hook)()
        monkeypatch.setattr(triton.knobs.runtime, name, own)
        assert chain.call() == "replayed"
        own.add(hook)
        assert chain.call() == "launched"
        own.remove(hook)
    else:
        monkeypatch.setattr(triton.knobs.runtime, name, hook)
        assert chain.call() == "launched"
        monkeypatch.setattr(triton.knobs.runtime, name, None)
    assert chain.call() == "replayed"


def test_warm_up_neither_launches_nor_counts():
    chain = Chain()
    for _ in range(4):
        assert not launched(lambda: warm_up(chain.run))
    assert chain.calls(3) == FIRST_CALLS[:3]
    assert not launched(lambda: warm_up(chain.run))


def test_one_launch_is_no_graph():
    chain = Chain()
    buffers, _ = chain.program.chains
    first = {
        "products": chain.program.products[:PRODUCT_FIELDS],
        "scalars": chain.program.scalars[:SCALAR_FIELDS],
        "chains": (buffers, 1),
    }
    chain.program = replace(chain.program, **first)
    assert chain.calls(5) == ["launched"] * 5


def test_launches_of_a_graph_share_the_largest_scratch_memory(card, monkeypatch):
    """Which is not of the pool of the capture, and stays as it is as long as the graph."""
    asked, allocated, in_graphs = [], [], []

    def allocate(size, alignment, stream):
        assert not card.capturing
        allocated.append(size)
        return torch.empty(size, dtype=torch.int8)

    def ask():
        size = 100 * (3 - len(card.launched) % 3)
        memory = _allocation._allocator.get()(size, 128, card.stream)
        asked.append(memory.data_ptr())
        if card.capturing:
            in_graphs.append(weakref.ref(memory))

    monkeypatch.setattr(replay, "scratch", allocate)
    card.before_launch = ask
    chain = Chain()
    assert chain.calls(5) == FIRST_CALLS
    count = len(chain.expected)
    assert len(allocated) == 2 * count and len(asked) == 3 * count
    assert len(in_graphs) == count and len(set(asked[-count:])) == 1
    card.allocators.clear()
    kept = in_graphs[0]()
    assert kept is not None and kept.numel() == max(allocated) == 300


def test_what_cannot_be_recorded_is_launched_and_not_recorded_again(card, monkeypatch):
    chain = Chain()
    chain.calls(2)
    run = replay.run

    def fail(launches, device, *allocate):
        if not card.capturing:
            return run(launches, device, *allocate)
        run(launches[:3], device, *allocate)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(replay, "run", fail)
    assert launched(chain.run) == chain.expected
    assert not card.capturing and card.stream == 0 and not replay._recording.locked()
    monkeypatch.setattr(replay, "run", run)
    assert len(Graph.every) == 1 and chain.calls(2) == ["launched", "launched"]
