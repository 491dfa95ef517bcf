"""Triton's chains on a GPU, replayed as CUDA graphs from the third call on: the bits of product after product."""

import threading
from functools import partial

import pytest
import torch
from cases import product_by_product
from test_cuda_muon import SECOND_DEVICE
from test_cuda_replay import GROUPS, Chain

from muon_kernels import orthogonalize, use_backend

pytest.importorskip("triton")

from muon_kernels.backends.triton import chains, gemm_add, symm_gemm, whole

pytestmark = pytest.mark.gpu


class TritonChain(Chain):
    backend = "triton"
    by_products = staticmethod(partial(product_by_product, symm_gemm.symm_gemm, gemm_add.gemm_add))


@pytest.fixture
def replays(monkeypatch):
    """The graphs that were replayed, in order."""
    seen = []
    replay = torch.cuda.CUDAGraph.replay

    def seeing(graph):
        seen.append(graph)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", seeing)
    for module in (chains, whole):
        monkeypatch.setattr(module, "_plans", {})
    return seen


def overwrite_free_memory():
    for size in (2**9, 2**14, 2**17, 2**20):
        [torch.full((size,), 85, device="cuda", dtype=torch.int8) for _ in range(20)]


@pytest.mark.parametrize("groups", [*GROUPS, [(1, 2048, 2048)]], ids=str)
def test_again_and_again(groups, replays):
    """Other matrices in each call, and nothing of a graph in memory that others get."""
    chain = TritonChain(groups)
    for call in range(1, 7):
        chain.step()
        assert len(replays) == max(0, call - 2)
        overwrite_free_memory()
    assert len(set(replays)) == 1


def test_many_calls_before_the_first_has_ended(replays):
    """Then the plan goes, and others get its memory, while its graph runs."""
    chain = TritonChain(GROUPS[1])
    for _ in range(4):
        chain.step()
    expected = chain.draw()
    start = chain.workspace.clone()
    for _ in range(50):
        chain.launch_again(start)
    chains._plans.clear()
    replays.clear()
    overwrite_free_memory()
    chain.check(expected)


def test_workspaces_that_move(replays):
    chain = TritonChain(GROUPS[1])
    for workspace in [chain.new_workspace() for _ in range(3)]:
        chain.workspace = workspace
        replays.clear()
        for _ in range(4):
            chain.step()
        assert len(replays) == 2


def test_a_plan_holds_little_memory(replays):
    chain = TritonChain(GROUPS[1])
    chain.step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    chain.step()
    chain.step()
    torch.cuda.synchronize()
    assert len(replays) == 1
    assert torch.cuda.memory_allocated() - before < 2**18


def test_in_a_graph_of_the_caller(replays):
    """Which takes the launches and is valid beside replays."""
    chain = TritonChain(GROUPS[1])
    for _ in range(4):
        chain.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain.launch()
    for _ in range(3):
        expected = chain.draw()
        graph.replay()
        chain.check(expected)
        replays.clear()
        chain.step()
        assert len(replays) == 1 and replays[0] is not graph


def test_two_streams(replays):
    """A workspace each at once, then one workspace in turns."""
    each = [TritonChain(GROUPS[0]), TritonChain(GROUPS[1])]
    streams = [torch.cuda.Stream() for _ in each]
    for _ in range(6):
        expected = [chain.draw() for chain in each]
        torch.cuda.synchronize()
        for chain, stream in zip(each, streams, strict=True):
            with torch.cuda.stream(stream):
                chain.launch()
        torch.cuda.synchronize()
        for chain, results in zip(each, expected, strict=True):
            chain.check(results)
    assert len(replays) == 8
    for i in range(6):
        expected = each[0].draw()
        torch.cuda.synchronize()
        with torch.cuda.stream(streams[i % 2]):
            each[0].launch()
        torch.cuda.synchronize()
        each[0].check(expected)


def test_two_threads(replays):
    """With a chain and a stream each."""
    each = [TritonChain(groups) for groups in (GROUPS[0], GROUPS[1])]
    expected = [chain.draw() for chain in each]
    starts = [chain.workspace.clone() for chain in each]
    together, errors = threading.Barrier(2), []

    def steps(chain, start, results):
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(6):
                    together.wait()
                    chain.launch_again(start)
                    chain.check(results)
        except BaseException as error:
            together.abort()
            errors.append(error)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=steps, args=args) for args in zip(each, starts, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(replays) == 8


@SECOND_DEVICE
def test_two_devices(replays):
    each = [TritonChain(GROUPS[1]), TritonChain(GROUPS[1], "cuda:1")]
    for _ in range(5):
        for chain in each:
            chain.step()
    assert len(replays) == 6


def test_random_numbers_go_on_as_without_graphs(replays):
    """A CUDAGraph takes part in the state of torch's generator."""
    chain = TritonChain(GROUPS[0])
    chain.draw()
    start = chain.workspace.clone()
    drawn = []
    for calls in (0, 5):
        torch.manual_seed(0)
        for _ in range(calls):
            chain.launch_again(start)
        drawn.append(torch.rand(8, device="cuda"))
    assert torch.equal(*drawn)
    assert len(replays) == 3


@pytest.mark.parametrize("shape", [(300, 200), (512, 2048), (2048, 2048)], ids=str)
def test_orthogonalize_has_the_bits_of_its_first_call(shape, replays):
    """Its workspace is new in each call, and lies where the last one lay."""
    x, *others = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    with use_backend("triton"):
        first = orthogonalize(x)
        for other in others:
            assert not torch.equal(orthogonalize(other), first)
        assert torch.equal(orthogonalize(x), first)
    assert replays
