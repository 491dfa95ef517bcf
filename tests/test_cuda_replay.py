"""Chains that are replayed as CUDA graphs from the third call on a workspace on: the bits of product after product."""

import pytest
import torch
from test_cuda_chains import by_products, filled
from test_cuda_muon import SECOND_DEVICE
from torch import nn

from muon_kernels import Muon, ops, use_backend
from muon_kernels.program import view

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("on_hopper")]

GROUPS = [
    [(3, 256, 512)],  # every product in one round: no counters
    [(9, 1024, 1280), (5, 640, 384)],  # with counters, which a graph must clear
    [(4, 96, 160), (3, 512, 256), (2, 128, 128)],  # and small chains in front
]


class Chain:
    """A program, its workspace, and what it is to leave there of matrices that are drawn anew for each call."""

    backend = "cuda"
    by_products = staticmethod(by_products)

    def __init__(self, groups, device="cuda"):
        self.chain, _ = filled(groups, "auto", torch.float16)
        self.device = torch.device(device)
        self.workspace = self.new_workspace()

    def new_workspace(self):
        return torch.empty(self.chain.plan.program.elements, dtype=torch.float16, device=self.device)

    def draw(self):
        """Fills the workspace and says what a call is to leave there."""
        self.workspace.fill_(torch.nan)
        for buffer in self.chain.plan.normalised:
            x = torch.randn(buffer[1:4], device=self.device)
            view(self.workspace, buffer).copy_(x / x.norm(dim=(1, 2), keepdim=True))
        start = self.workspace.clone()
        self.by_products(start, self.chain.plan.program)
        return self.results(start)

    def results(self, workspace):
        return [view(workspace, buffer).clone() for buffer in (*self.chain.plan.factors, *self.chain.plan.xs)]

    def launch(self):
        with use_backend(self.backend):
            ops.chains(self.workspace, self.chain.plan.program)

    def check(self, expected):
        for one, other in zip(self.results(self.workspace), expected, strict=True):
            assert torch.equal(one, other)
            assert other.isfinite().all()

    def launch_again(self, start):
        self.workspace.copy_(start)
        self.launch()

    def step(self):
        expected = self.draw()
        self.launch()
        self.check(expected)


@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_again_and_again(groups):
    chain = Chain(groups)
    for _ in range(6):
        chain.step()


@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_many_calls_before_the_first_has_ended(groups):
    chain = Chain(groups)
    for _ in range(4):
        chain.step()
    expected = chain.draw()
    start = chain.workspace.clone()
    for _ in range(50):
        chain.launch_again(start)
    chain.check(expected)


def test_workspaces_that_move():
    """One more workspace than there are kept, in turns and thrice each in a row; then new ones between other memory."""
    chain = Chain(GROUPS[1])
    workspaces = [chain.new_workspace() for _ in range(5)]
    for workspace in (*workspaces * 4, *(w for w in workspaces for _ in range(4)), *workspaces):
        chain.workspace = workspace
        chain.step()
    del workspaces, workspace
    others = []
    for i in range(12):
        chain.workspace = None
        others = [*others[-3:], torch.full((1_000_003 * (1 + i % 3),), torch.nan, device="cuda")]
        chain.workspace = chain.new_workspace()
        chain.step()


def test_in_a_graph_of_the_caller():
    """Which takes the launches, is valid beside replays, and is not disturbed by a replay that ends meanwhile."""
    chain, other = Chain(GROUPS[1]), Chain(GROUPS[1])
    for _ in range(4):
        chain.step()
    fillers = [chain.new_workspace() for _ in range(3)]
    own = chain.workspace
    for filler in fillers:  # with `own` as many as are kept
        chain.workspace = filler
        for _ in range(3):
            chain.step()
    chain.workspace = own
    same, new = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(same):
        chain.launch()
    with torch.cuda.graph(new):  # on a workspace for which the oldest must go
        other.launch()
    for _ in range(3):
        for replayed, graph in ((chain, same), (other, new)):
            expected = replayed.draw()
            graph.replay()
            replayed.check(expected)
            replayed.step()


def test_recorded_while_another_stream_is_captured():
    chain, x = Chain(GROUPS[1]), torch.ones(8, device="cuda")
    expected = chain.draw()
    start = chain.workspace.clone()
    graph, beside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        x.add_(1)
        with torch.cuda.stream(beside):
            for _ in range(4):
                chain.launch_again(start)
        x.add_(1)
    torch.cuda.synchronize()
    chain.check(expected)
    graph.replay()
    assert (x == 3).all()


def test_two_streams():
    """A workspace each at once, then one workspace in turns."""
    chains = [Chain(GROUPS[1]), Chain(GROUPS[1])]
    streams = [torch.cuda.Stream() for _ in chains]
    for _ in range(10):
        expected = [chain.draw() for chain in chains]
        torch.cuda.synchronize()
        for chain, stream in zip(chains, streams, strict=True):
            with torch.cuda.stream(stream):
                chain.launch()
        torch.cuda.synchronize()
        for chain, results in zip(chains, expected, strict=True):
            chain.check(results)
    for i in range(6):
        expected = chains[0].draw()
        torch.cuda.synchronize()
        with torch.cuda.stream(streams[i % 2]):
            chains[0].launch()
        torch.cuda.synchronize()
        chains[0].check(expected)


@SECOND_DEVICE
def test_two_devices():
    chains = [Chain(GROUPS[1]), Chain(GROUPS[1], "cuda:1")]
    for _ in range(5):
        for chain in chains:
            chain.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_have_the_bits_of_the_launches(dtype):
    """A captured step takes the launches themselves; other gradients, another lr and other memory for each step."""
    shapes = [(256, 640)] * 3 + [(512, 512)] * 2 + [(1024, 256), (2048, 2048)]
    lr = torch.tensor(0.1, device="cuda")
    start = [torch.randn(shape, dtype=dtype, device="cuda") for shape in shapes]
    called, captured = ([nn.Parameter(x.clone()) for x in start] for _ in range(2))
    for p in (*called, *captured):
        p.grad = torch.zeros_like(p)
    ours, others = Muon(called, lr=lr), Muon(captured, lr=lr)
    ours.step()
    others.step()  # makes the state
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        others.step()
    between = []
    for step in range(8):
        lr.fill_(0.1 / (1 + step))
        for p, q in zip(called, captured, strict=True):
            p.grad = torch.randn_like(p)
            q.grad.copy_(p.grad)
        if step >= 5:
            between.append(torch.empty(777_777 * step, device="cuda"))
        ours.step()
        graph.replay()
        for p, q in zip(called, captured, strict=True):
            assert torch.equal(p, q)
            assert p.isfinite().all()
