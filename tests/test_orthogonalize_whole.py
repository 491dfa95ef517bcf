"""`orthogonalize` in one call of a backend: the bits of its ops one by one.

On a GPU, and on the Triton backend also in Triton's interpreter (see test_triton_interpreter.py).
"""

import importlib.util
from dataclasses import replace

import pytest
import torch
from triton_cases import DEVICE, DTYPES, INTERPRETED, MARKS, WIDE

from muon_kernels import BackendUnavailable, dispatch, orthogonalize, use_backend
from muon_kernels.coefficients import resolve_coefficients
from muon_kernels.orthogonalize import chain_plan

ON_A_CARD = pytest.mark.gpu

SHAPES = (
    [(8, 24), (3, 9, 13), (2, 2, 16, 5), (1, 7)]
    if INTERPRETED
    else [(768, 3072), (3, 200, 333), (2, 1024, 256), (256, 128, 128), (1, 7), (9, 1), (1100, 1030), (2, 3, 64, 40)]
)
"""Wide, tall, many, of odd sides, single rows and columns, and one whose norm takes more than a cluster."""

SIZE = 5 if INTERPRETED else 100
"""What sides are multiples of where a test needs but one shape: odd multiples are none of 8."""

WITHOUT_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

CHAINS = [{}, {"method": "standard"}] + ([] if INTERPRETED else [{"method": "squaring"}, {"ns_steps": 2}])
"""The interpreter takes long over every product."""

DEFAULTS = {"compute_dtype": torch.float16} | ({"ns_steps": 2} if INTERPRETED else {})


@pytest.fixture(
    autouse=True, params=[pytest.param("cuda", marks=ON_A_CARD), pytest.param("triton", marks=[*MARKS, WITHOUT_TRITON])]
)
def backend(request, monkeypatch):
    if request.param == "cuda":
        request.getfixturevalue("on_hopper")
    elif INTERPRETED:
        small_tiles(monkeypatch)
    with use_backend(request.param):
        yield request.param


def small_tiles(monkeypatch):
    """The interpreter takes long over what lies outside the matrix."""
    from muon_kernels.backends.triton import chains, gemm, whole

    config = replace(WIDE, block_n=16)
    monkeypatch.setattr(gemm, "_config", lambda *args: config)
    monkeypatch.setattr(gemm, "NARROW", config)
    for module in (chains, gemm, whole):
        monkeypatch.setattr(module, "_plans", {})


@pytest.fixture
def calls(monkeypatch):
    """Whether each call of `orthogonalize` was one of the backend. Memory that it finds holds NaN."""
    whole, taken = dispatch.whole, []

    def spy(name, lists, request=None):
        run = whole(name, lists, request)

        def spied(*args, **kwargs):
            taken.append(all(run(*args, **kwargs)))
            return taken[-1:]

        return run and spied

    monkeypatch.setattr(dispatch, "whole", spy)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield taken
    torch.use_deterministic_algorithms(False)


def by_ops(x, monkeypatch, **options):
    with monkeypatch.context() as patched:
        patched.setattr(dispatch, "whole", lambda name, lists, request=None: None)
        return in_one(x, **options)


def in_one(x, **options):
    return orthogonalize(x, **DEFAULTS | options)


def written_by(backend, dtype):
    """What the last product is asked for: that of the CUDA kernels writes no float16."""
    return {"out_dtype": torch.float32} if backend == "cuda" and dtype == torch.float16 else {}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", CHAINS, ids=str)
def test_the_bits_of_the_ops(dtype, options, backend, calls, monkeypatch):
    options = options | written_by(backend, dtype)
    for shape in SHAPES:
        x = torch.randn(shape, device=DEVICE).to(dtype)
        repeats = 2 if INTERPRETED else 4  # chains are recorded, then replayed
        for _ in range(repeats):
            actual = in_one(x, **options)
        assert actual.isfinite().all()
        assert torch.equal(actual, by_ops(x, monkeypatch, **options)), shape
    assert all(calls) and len(calls) == repeats * len(SHAPES)


@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
def test_any_dtype_of_the_result(out_dtype, backend, calls, monkeypatch):
    side = SIZE if INTERPRETED else 104  # the CUDA products write float16 in multiples of 8
    x = torch.randn(2, side, 2 * side, device=DEVICE)
    actual = in_one(x, out_dtype=out_dtype)
    assert actual.dtype == out_dtype and actual.isfinite().all()
    assert torch.equal(actual, by_ops(x, monkeypatch, out_dtype=out_dtype))
    assert calls == [not written_by(backend, out_dtype)]


@pytest.mark.parametrize(
    "options", [{"eps": 1e3}, {"safety_factor": 2.0}, {"ns_coefficients": "polar_express"}], ids=str
)
def test_options_of_each_call(options, calls, monkeypatch):
    x = torch.randn(2, SIZE, 2 * SIZE, device=DEVICE)
    plain = in_one(x)
    actual = in_one(x, **options)
    assert not torch.equal(actual, plain)
    assert torch.equal(actual, by_ops(x, monkeypatch, **options))
    assert calls == [True, True]


def test_matrices_of_several_shapes(backend):
    """Of two steps each: the bits of each alone."""
    groups = ((2, SIZE, 3 * SIZE), (1, 3 * SIZE, SIZE), (3, 2 * SIZE, 2 * SIZE))
    xs = [torch.randn(group, device=DEVICE) for group in groups]
    outs = [torch.full_like(x, torch.nan) for x in xs]
    plan = chain_plan(groups, resolve_coefficients("original", 2), "auto", torch.float16, True)
    for _ in range(2):
        assert dispatch.whole("orthogonalize", [xs, outs])(plan, xs, outs, eps=1e-7, safety_factor=1.0) == [True]
        for x, out in zip(xs, outs, strict=True):
            assert torch.equal(out, in_one(x, ns_coefficients="original", ns_steps=2))
            out.fill_(torch.nan)


def test_any_memory_order(calls, monkeypatch):
    base = torch.randn(3, 3 * SIZE, 10 * SIZE + 1, device=DEVICE)
    repeated = base[1, :SIZE, :SIZE].expand(5, SIZE, SIZE)
    for x in (base[:, :, 1::2], base.mT, base[:, ::3, 7:], repeated, -base._neg_view()):
        assert torch.equal(in_one(x), by_ops(x, monkeypatch))
    assert calls == [True] * 5


def test_a_matrix_that_is_not_finite_is_alone_in_it(calls):
    x = torch.randn(5, 3 * SIZE, 2 * SIZE, device=DEVICE)
    x[1, 3, 4] = torch.inf
    x[3, 0, 0] = torch.nan
    x[4] = 0
    out = in_one(x)
    assert out[[1, 3]].isnan().all() and out[[0, 2]].isfinite().all() and (out[4] == 0).all()
    assert torch.equal(out[2], in_one(x[2]))
    assert calls == [True, True]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_huge_and_tiny_matrices(scale, calls):
    x = torch.randn(3 * SIZE, 5 * SIZE, device=DEVICE)
    torch.testing.assert_close(in_one(x * scale, eps=0.0), in_one(x, eps=0.0), rtol=0, atol=2e-3)
    assert calls == [True, True]


@ON_A_CARD
def test_in_a_graph_and_on_another_stream(calls):
    x = torch.randn(2, 512, 1024, device="cuda", dtype=torch.bfloat16)
    expected = orthogonalize(x)
    other = torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):
        assert torch.equal(orthogonalize(x), expected)
    graph, changed = torch.cuda.CUDAGraph(), torch.empty_like(x)
    with torch.cuda.graph(graph):
        out = orthogonalize(changed)
    changed.copy_(x)
    graph.replay()
    assert torch.equal(out, expected)
    assert calls == [True] * 3


def test_what_no_product_writes_or_the_last_one_cannot_goes_op_by_op(backend, calls, monkeypatch):
    x = torch.randn(2, 2 * SIZE, 4 * SIZE, device=DEVICE)
    other = torch.float32 if INTERPRETED else torch.bfloat16
    for options in ({"out_dtype": torch.float16}, {"ns_steps": 0}, {"compute_dtype": other}):
        assert torch.equal(in_one(x, **options), by_ops(x, monkeypatch, **options))
    assert calls == [backend == "triton"]


@pytest.mark.parametrize("options", [{"out_dtype": torch.float64}, {"out_dtype": torch.float32}], ids=str)
def test_a_dtype_that_no_kernel_takes_goes_op_by_op(options, backend, monkeypatch):
    """Without `calls`: torch's own products refuse to be deterministic."""
    x = torch.randn(2, 2 * SIZE, 4 * SIZE, device=DEVICE)
    x = x.double() if options["out_dtype"] == torch.float32 else x
    assert dispatch.whole("orthogonalize", [[x], [x.to(options["out_dtype"])]]) is None
    with pytest.raises(BackendUnavailable, match="float64"):
        in_one(x, **options)
    with use_backend(f"{backend},reference"):
        assert torch.equal(in_one(x, **options), by_ops(x, monkeypatch, **options))


@ON_A_CARD
def test_no_memory_is_kept(calls):
    x = torch.randn(4, 512, 512, device="cuda")
    for _ in range(4):
        orthogonalize(x)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    out = orthogonalize(x)
    assert torch.cuda.memory_allocated() - before == out.numel() * out.element_size()
