"""The first launch of a wave, prologue_normalize, on a GPU: the bits of the ops prologue and normalize."""

import itertools

import pytest
import torch
from cases import LAYOUTS, SHAPES, in_layout

from muon_kernels import extension, ops
from muon_kernels.backends.device import current_stream
from muon_kernels.dispatch import PLAIN
from muon_kernels.program import BUFFER_FIELDS, ProgramBuilder, rows_of, view
from muon_kernels.workspace import empty_batch

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("on_hopper", "on_cuda_backend")]

DEVICE = "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = [*SHAPES, (1, 4097), (1, 6145), (300, 70), (1000, 999), (768, 768)]
LARGE = [(1536, 1536)] * 3 + [(700, 999), (64, 64), (1, 1)]
"""Enough chunks for blocks that take one through the prologue and normalise another."""


def strided(x, layout):
    """A copy of [rows, cols] in another memory layout; "position" is one of a convolution's kernel."""
    if layout != "position":
        return in_layout(x, layout)
    return x.new_full((*x.shape, 9), torch.nan)[..., 4].copy_(x)


class Case:
    """The matrices of a wave whose chains hold no product. lr is 0: only momenta and workspace change."""

    def __init__(
        self, shapes, grad_dtype=torch.bfloat16, momentum_dtype=torch.bfloat16, layouts=None, eps=1e-7, **options
    ):
        layouts = layouts or [("contiguous", "contiguous")] * len(shapes)
        data = [[torch.randn(s, device=DEVICE) for s in shapes] for _ in range(2)]
        self.grads = [strided(x.to(grad_dtype), of) for x, (of, _) in zip(data[0], layouts, strict=True)]
        self.momenta = [strided(x.to(momentum_dtype), of) for x, (_, of) in zip(data[1], layouts, strict=True)]
        self.params = [torch.zeros(s, device=DEVICE) for s in shapes]
        self.options = {"momentum": 0.95, "nesterov": True, "maximize": False} | options
        self.eps = eps
        build = ProgramBuilder(2)
        for rows, cols in shapes:
            build.chain(1)
            build.buffer(rows, cols)
            build.buffer(min(rows, cols), min(rows, cols))
        buffers = [tuple(buffer) for buffer in rows_of(build.buffers, BUFFER_FIELDS)]
        self.xs, self.elements = buffers[::2], build.elements
        module = extension.load()
        self.wave = module.Wave(module.Chains([], [], [], []), self.xs, buffers[1::2], self.xs)
        self.workspace = torch.empty(self.elements, dtype=torch.float16, device=DEVICE)
        lists = (module.read(tensors, PLAIN) for tensors in (self.grads, self.momenta, self.params))
        self.step = module.WaveStep(self.wave, range(len(shapes)), *lists, [1.0] * len(shapes))
        assert self.step.fits()
        self.scratch = torch.empty(self.step.scratch(), dtype=torch.float64, device=DEVICE)

    def launch(self):
        self.workspace.fill_(torch.nan)
        self.scratch.view(torch.int32).fill_(-1)  # NaN as partial sums, and wrong as every count
        o = self.options
        scalars = [0 if o.get(name) is None else o[name].data_ptr() for name in ("grad_scale", "found_inf")]
        self.step.launch(
            *(o["momentum"], o["nesterov"], o["maximize"], scalars[0], self.eps, 1.0),
            *(0.0, 0.0, 0, False, scalars[1]),  # weight_decay, lr, lr_device and its kind, found_inf
            self.workspace.data_ptr(),
            self.scratch.data_ptr(),
            current_stream(self.workspace.device),
        )
        return [self.workspace, *self.momenta]

    def by_ops(self):
        """What `launch` is to return, found by the ops, which see the same addresses and strides."""
        before = copies(self.momenta)
        raw = [empty_batch(1, *g.shape, torch.bfloat16, g.device) for g in self.grads]
        outs = [empty_batch(1, *g.shape, torch.float16, g.device) for g in self.grads]
        sumsq = torch.empty(len(raw), dtype=torch.float64, device=DEVICE)
        ops.prologue(self.grads, self.momenta, [x[0] for x in raw], sumsq, **self.options)
        ops.normalize(raw, sumsq, outs, eps=self.eps, safety_factor=1.0)
        workspace = torch.full((self.elements,), torch.nan, dtype=torch.float16, device=DEVICE)
        for buffer, out in zip(self.xs, outs, strict=True):
            view(workspace, buffer).copy_(out)
        found = [workspace, *copies(self.momenta)]
        self.restore(before)
        return found

    def restore(self, momenta):
        for own, before in zip(self.momenta, momenta, strict=True):
            own.copy_(before)

    def check(self):
        expected = self.by_ops()
        assert_same_bits(self.launch(), expected)


def assert_same_bits(actual, expected):
    for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
        bits = torch.int32 if one.dtype == torch.float32 else torch.int16
        assert torch.equal(one.contiguous().view(bits), other.contiguous().view(bits)), i


def copies(tensors):
    return [t.clone() for t in tensors]


@pytest.mark.parametrize(
    "dtypes", list(itertools.product(DTYPES, repeat=2)), ids=lambda d: "-".join(str(t)[6:] for t in d)
)
@pytest.mark.parametrize("shapes", [SIZES, LARGE], ids=["sizes", "large"])
def test_sizes_and_dtypes(shapes, dtypes):
    Case(shapes, *dtypes).check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(dtype):
    pairs = list(itertools.product([*LAYOUTS, "position"], repeat=2))
    shapes = [(1, 1), (1, 300), (300, 1), (64, 64), (63, 65), (128, 256), (130, 200)]
    listed = [(shape, pair) for shape in shapes for pair in pairs]
    Case([shape for shape, _ in listed], dtype, dtype, [pair for _, pair in listed]).check()


@pytest.mark.parametrize("layout", ["padded", "offset"])
def test_large_ones_of_a_layout(layout):
    Case(LARGE, layouts=[(layout, layout)] * len(LARGE)).check()


def test_thousands_of_matrices():
    """More than a table holds, dense and strided, in turns."""
    shapes = [(1 + i % 70, 8 * (1 + i % 11)) for i in range(2500)]
    layouts = [(LAYOUTS[i % 2], "contiguous") for i in range(len(shapes))]
    Case(shapes, torch.float32, torch.float32, layouts).check()


@pytest.mark.parametrize(
    "options",
    [
        {"nesterov": False},
        {"maximize": True, "momentum": 0.3},
        {"grad_scale": 1024.0},
        {"found_inf": 1.0},
        {"found_inf": 0.0, "grad_scale": 2.0},
        {"eps": 1e3},
    ],
    ids=str,
)
def test_options(options):
    scalars = {
        name: torch.tensor([options[name]], device=DEVICE) for name in ("grad_scale", "found_inf") if name in options
    }
    Case(SIZES, torch.float32, torch.bfloat16, **options | scalars).check()


def test_matrices_that_are_zero_tiny_huge_or_not_finite():
    case = Case([(100, 72)] * 7, torch.float32, torch.float32)
    for i, scale in enumerate((0.0, 1e-30, 1e-40, 1e30)):
        case.grads[i].mul_(scale)
        case.momenta[i].mul_(scale)
    case.grads[4][5, 5] = torch.nan
    case.momenta[5][99, 71] = torch.inf
    case.check()
    xs = [view(case.workspace, buffer) for buffer in case.xs]
    assert not xs[0].any()
    assert [bool(x.isnan().all()) for x in xs] == [False, False, False, False, True, True, False]


@pytest.mark.parametrize("shapes", [SIZES, LARGE], ids=["sizes", "large"])
def test_in_a_cuda_graph_with_other_gradients(shapes):
    case = Case(shapes)
    case.launch()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.launch()
    for _ in range(3):
        for grad in case.grads:
            grad.normal_()
        expected = case.by_ops()
        graph.replay()
        assert_same_bits([case.workspace, *case.momenta], expected)


def test_on_two_streams_again_and_again():
    cases = [Case(LARGE), Case(SIZES + LARGE, torch.float32, torch.float32)]
    momenta = [copies(case.momenta) for case in cases]
    expected = [case.by_ops() for case in cases]
    streams = [torch.cuda.Stream() for _ in cases]
    for _ in range(30):
        for case, own in zip(cases, momenta, strict=True):
            case.restore(own)
        torch.cuda.synchronize()
        for case, stream in zip(cases, streams, strict=True):
            with torch.cuda.stream(stream):
                case.launch()
        torch.cuda.synchronize()
        for case, then in zip(cases, expected, strict=True):
            assert_same_bits([case.workspace, *case.momenta], then)
