"""From Python to the launch without a GPU: csrc/bindings.cpp over csrc/api.h in plain loops (tests/host/kernels.cpp).

The data are small dyadic numbers, exact in every dtype, so that results must equal the reference bit for bit.
"""

import ast
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig

import kernel_fuzz
import pytest
import torch
from cases import LAYOUTS, SHAPES, assert_descriptions_differ, in_layout
from optimizers import make_params, set_grads
from test_build import ROOT
from torch import nn

from muon_kernels import Muon, dispatch, extension, ops, orthogonalize, use_backend
from muon_kernels.backends import cuda, cuda_chains, cuda_products, cuda_wave
from muon_kernels.variants import Int8Momentum
from muon_kernels.workspace import empty_batch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def host_module(setup_py, tmp_path_factory):
    """The extension module, its kernels replaced."""
    pybind11 = pytest.importorskip("pybind11")
    nvcc = setup_py.find_nvcc(os.environ)  # a C++ compiler that knows where CUDA's headers are
    if nvcc is None:
        pytest.skip("needs nvcc")
    folder = tmp_path_factory.mktemp("host")
    includes = [ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include")]
    flags = ["-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden", *(f"-I{path}" for path in includes)]
    sources = [*(ROOT / "csrc").glob("*.cpp"), ROOT / "tests" / "host" / "kernels.cpp"]
    objects = [folder / f"{source.name}.o" for source in sources]
    compilers = [
        subprocess.Popen([nvcc, *flags, "-c", source, "-o", target])
        for source, target in zip(sources, objects, strict=True)
    ]
    assert [compiler.wait() for compiler in compilers] == [0] * len(sources)
    target = folder / "_C.so"
    subprocess.run([nvcc, "-shared", "-cudart=none", *objects, "-o", target], check=True)
    spec = importlib.util.spec_from_file_location("host._C", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def on_the_host(host_module, monkeypatch):
    """Makes the backend "cuda" run on CPU tensors."""
    reason = cuda.unavailable_reason
    monkeypatch.setattr(extension, "load", lambda: host_module)
    monkeypatch.setattr(extension, "unavailable_reason", lambda: None)
    monkeypatch.setattr(cuda, "unavailable_reason", lambda op, _, lists: reason(op, torch.device("cuda"), lists))
    for module in (cuda, cuda_products):
        monkeypatch.setattr(module, "capability", lambda _: 90)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: 0, raising=False)
    for kept in (cuda_chains._items, cuda_wave._wave):  # objects of the extension's own module, where there is one
        kept.cache_clear()
    yield
    for kept in (cuda_chains._items, cuda_wave._wave):
        kept.cache_clear()


def test_signatures_are_written_down(host_module):
    stub = ast.parse((ROOT / "muon_kernels" / "_C.pyi").read_text())
    written = {node.name: node for node in stub.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert set(written) == {name for name in vars(host_module) if not name.startswith("__")}
    for name, node in written.items():
        functions = [node] if isinstance(node, ast.FunctionDef) else node.body
        for function in functions:
            owner = host_module if function is node else getattr(host_module, name)
            signature = getattr(owner, function.name).__doc__.splitlines()[0]
            names = [argument.arg for argument in function.args.args]
            assert names == re.findall(r"(\w+): ", signature), (name, function.name, signature)


def matrices(dtype, shapes=SHAPES):
    """Small multiples of a quarter, in every memory layout."""
    layouts = (LAYOUTS[i % len(LAYOUTS)] for i in range(len(shapes)))
    return [
        in_layout((torch.randint(-4, 5, s) / 4).to(dtype), layout) for s, layout in zip(shapes, layouts, strict=True)
    ]


def signs(dtype, *shape):
    """-1, 0 and 1: their products add up exactly, up to 256 of them in bfloat16."""
    return torch.randint(-1, 2, shape).to(dtype)


def assert_same(call):
    """`call()` makes its tensors and returns what an op left in them: the same bits from both backends."""
    results = []
    for backend in ("reference", "cuda"):
        torch.manual_seed(0)
        with use_backend(backend):
            results.append(call())
    for one, other in zip(*results, strict=True):
        # The reference squares a norm.
        rtol = 1e-15 if one.dtype == torch.float64 else 0
        torch.testing.assert_close(other, one, rtol=rtol, atol=0, equal_nan=True)


@pytest.mark.parametrize("momentum_dtype", DTYPES)
@pytest.mark.parametrize("grad_dtype", DTYPES)
def test_prologue_dtypes(grad_dtype, momentum_dtype):
    def call(out_dtype):
        grads, momenta, outs = map(matrices, (grad_dtype, momentum_dtype, out_dtype))
        sumsq = torch.full((len(grads),), torch.nan, dtype=torch.float64)
        ops.prologue(grads, momenta, outs, sumsq, momentum=0.5)
        return [*grads, *momenta, *outs, sumsq]

    for out_dtype in DTYPES:
        assert_same(lambda out_dtype=out_dtype: call(out_dtype))


@pytest.mark.parametrize(
    "options",
    [
        {"nesterov": False},
        {"ema": False},
        {"ema": False, "nesterov": False},
        {"maximize": True},
        {"grad_scale": torch.tensor(2.0)},
        {"found_inf": torch.tensor(1.0)},
        {"found_inf": torch.tensor(0.0), "momentum": 0.25},
    ],
    ids=str,
)
def test_prologue_options(options):
    def call():
        grads, momenta, outs = (matrices(torch.float32) for _ in range(3))
        sumsq = torch.full((len(grads),), torch.nan, dtype=torch.float64)
        ops.prologue(grads, momenta, outs, sumsq, **{"momentum": 0.5} | options)
        return [*grads, *momenta, *outs, sumsq]

    assert_same(call)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_squares_and_normalize(dtype):
    def call():
        shapes = [(2, 3, 5), (1, 8, 8), (3, 4, 1)]
        xs, outs = matrices(dtype, shapes), matrices(torch.float16, shapes)
        found = torch.full((6,), torch.nan, dtype=torch.float64)
        ops.sum_squares(xs, found)
        sumsq = torch.tensor([4.0, 0.25, 0.0, torch.inf, torch.nan, 2.0**-20], dtype=torch.float64)
        ops.normalize(xs, sumsq, outs, eps=2.0**-8, safety_factor=2.0)
        return [found, *outs]

    assert_same(call)


@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_normalize_by_own_norms(dtype, out_dtype):
    """Norms that are powers of two: of halves, a power of four of them."""

    def call():
        shapes = [(2, 2, 8), (0, 4, 4), (1, 8, 8), (3, 4, 1)]
        xs = [in_layout((torch.randint(2, s) - 0.5).to(dtype), at) for s, at in zip(shapes, LAYOUTS, strict=True)]
        outs = [torch.full_like(x, torch.nan, dtype=out_dtype) for x in xs]
        ops.normalize(xs, None, outs, eps=2.0**-8, safety_factor=2.0)
        return outs

    assert_same(call)


@pytest.mark.parametrize("param_dtype", DTYPES)
@pytest.mark.parametrize("update_dtype", DTYPES)
@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64)])
def test_apply(param_dtype, update_dtype, lr):
    def call(found_inf):
        params, updates = matrices(param_dtype), matrices(update_dtype)
        scales = [2.0 ** (i % 3) for i in range(len(params))]
        ops.apply(params, updates, lr=lr, weight_decay=0.5, scales=scales, found_inf=found_inf)
        return params

    for found_inf in (None, torch.tensor(0.0), torch.tensor(1.0)):
        assert_same(lambda found_inf=found_inf: call(found_inf))


@pytest.mark.parametrize("with_c", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products(dtype, with_c):
    options = {"alpha": 2.0, "beta": 0.5 if with_c else 0.0}

    def symmetric():
        xs = [signs(dtype, 2, 16, 40), signs(dtype, 3, 40, 8).mT, signs(dtype, 1, 8, 24)]
        squares = [signs(dtype, len(x), x.shape[1], x.shape[1]) for x in xs]
        c = [(s + s.mT).contiguous() for s in squares] if with_c else []
        outs = [torch.full_like(s, torch.nan) for s in squares]
        outs[1] = outs[1].mT
        ops.symm_gemm(xs, [x.mT for x in xs], c, outs, delta=4.0, **options)
        return outs

    def general():
        sizes = [(2, 16, 24, 40), (3, 8, 16, 8), (1, 40, 8, 16)]
        a = [signs(dtype, n, m, k) if i else signs(dtype, n, k, m).mT for i, (n, m, _, k) in enumerate(sizes)]
        b = [signs(dtype, n, k, w) if i else signs(dtype, n, w, k).mT for i, (n, _, w, k) in enumerate(sizes)]
        outs = [torch.full((n, m, w), torch.nan, dtype=dtype) for n, m, w, _ in sizes]
        outs[2] = torch.full((1, 8, 40), torch.nan, dtype=dtype).mT
        c = [signs(dtype, *out.shape).as_strided(out.shape, out.stride()) for out in outs] if with_c else []
        ops.gemm_add(a, b, c, outs, **options)
        return outs

    assert_same(symmetric)
    assert_same(general)


def aligned(batch):
    return empty_batch(*batch.shape, batch.dtype, batch.device).copy_(batch)


def factors(*sizes):
    """Operands as the chains leave them: [rows, rows] times wide, tall times [cols, cols]."""
    a, b = [], []
    for count, rows, cols in sizes:
        side = min(rows, cols)
        x = empty_batch(count, rows, cols, torch.float16, torch.device("cpu")).copy_(
            signs(torch.float16, count, rows, cols)
        )
        q = empty_batch(count, side, side, torch.float16, torch.device("cpu")).copy_(
            signs(torch.float16, count, side, side)
        )
        a.append(q if rows <= cols else x)
        b.append(x if rows <= cols else q.mT)
    return a, b


@pytest.mark.parametrize("sizes", [[(2, 8, 16), (3, 16, 8)], [(1, 7, 9), (0, 4, 4)], [(0, 4, 4), (2, 9, 7)]], ids=str)
@pytest.mark.parametrize("param_dtype", DTYPES)
def test_gemm_apply(param_dtype, sizes):
    def call(found_inf=None, layout="contiguous"):
        a, b = factors(*sizes)
        params = [
            in_layout((torch.randint(-4, 5, (m, n)) / 4).to(param_dtype), layout) for k, m, n in sizes for _ in range(k)
        ]
        scales = [2.0 ** (i % 3) for i in range(len(params))]
        ops.gemm_apply(a, b, params, lr=0.5, weight_decay=0.5, scales=scales, found_inf=found_inf)
        return params

    assert_same(call)
    assert_same(lambda: call(torch.tensor(1.0)))
    assert_same(lambda: call(layout="padded"))
    assert_same(lambda: call(layout="transposed"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_in_another_dtype(dtype):
    def call():
        a, b = factors((2, 8, 16), (3, 9, 7))
        outs = [torch.full((len(x), x.shape[1], y.shape[2]), torch.nan, dtype=dtype) for x, y in zip(a, b, strict=True)]
        ops.gemm_add(a, b, [], outs)
        return outs

    assert_same(call)


@pytest.mark.parametrize("method", ["standard", "gram", "squaring"])
@pytest.mark.parametrize("shape", [(2, 24, 40), (40, 24), (3, 7, 7), (2, 9, 1)])
def test_orthogonalize(shape, method):
    """float16 chains that round in another order: measured up to 1.03e-2 apart, of entries up to about 1."""
    g = torch.randn(shape)
    with use_backend("reference"):
        expected = orthogonalize(g, method=method, compute_dtype=torch.float16)
    with use_backend("cuda"):
        torch.testing.assert_close(
            orthogonalize(g, method=method, compute_dtype=torch.float16), expected, rtol=0, atol=2e-2
        )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layout": "rows:2"},
        {"layout": "transposed"},
        {"layout": "flatten", "shapes": [(8, 2, 3, 3), (4, 8, 1, 1)]},
        {"layout": "batch", "shapes": [(3, 8, 12), (2, 12, 8)]},
        {"preconditioning": "aol", "ns_coefficients": "turbo", "ns_steps": 4},
        {"weight_decay_rule": "cautious"},
        {"master_dtype": torch.float64},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_steps(dtype, options):
    """Measured apart after three steps at lr 0.1: up to 1.2e-3 in float32, 2.0e-3 in bfloat16."""
    options = dict(options)
    shapes = options.pop("shapes", [(8, 12), (12, 8), (24, 6), (8, 12)])
    results = []
    for backend in ("reference", "cuda"):
        params = make_params(dtype, shapes)
        optimizer = Muon(params, lr=0.1, compute_dtype=torch.float16, **options)
        for step in range(3):
            set_grads(params, step)
            with use_backend(backend if "master_dtype" not in options else "cuda,reference"):
                optimizer.step()
        results.append([p.detach() for p in params])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=2e-3 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("preconditioning", ["frobenius", "aol"])
def test_chains_count_behind_their_buffers(preconditioning, steps, monkeypatch):
    """The host's kernels write a counter a product, which is behind all buffers or in one that is not in use."""
    behind = []

    def chains(workspace, program):
        larger = torch.full((program.elements + 64,), 7.0, dtype=workspace.dtype)
        larger[: program.elements] = workspace
        ops.chains(larger[: program.elements], program)
        workspace.copy_(larger[: program.elements])
        behind.append(larger[program.elements :])

    monkeypatch.setattr(sys.modules["muon_kernels.orthogonalize"], "chains", chains)
    g, options = torch.randn(5, 8, 24), {"method": "gram", "ns_steps": steps, "preconditioning": preconditioning}
    results = []
    for backend in ("reference", "cuda"):
        with use_backend(backend):
            results.append(orthogonalize(g, compute_dtype=torch.float16, **options))
    torch.testing.assert_close(*results, rtol=0, atol=2e-2)
    assert behind
    assert all(torch.equal(x, torch.full_like(x, 7.0)) for x in behind)


def test_dimensions_that_do_not_merge_are_named():
    grads, momenta, outs = ([torch.zeros(2), torch.zeros(8, 8, 8)[:4, :4, :4]] for _ in range(3))
    message = r"grads, momenta and outs at index 1 must merge into at most two dimensions, got strides \(64, 8, 1\), "
    with use_backend("cuda"), pytest.raises(ValueError, match=message):
        ops.prologue(grads, momenta, outs, torch.empty(2, dtype=torch.float64), momentum=0.5)


def test_what_the_kernels_refuse_is_named():
    x = [nn.Parameter(torch.randn(4, 4, dtype=torch.float64))]
    with use_backend("cuda"), pytest.raises(RuntimeError, match="no CUDA kernel for torch.float64"):
        ops.sum_squares([p.detach()[None] for p in x], torch.empty(1, dtype=torch.float64))


def test_descriptions_tell_lists_apart():
    assert_descriptions_differ()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": False, "maximize": True, "momentum": 0.5, "weight_decay": 0.5},
        {"lr": torch.tensor(0.25)},
        {"eps": 1e30, "safety_factor": 2.0},
        {"method": "squaring"},
        {"layout": "rows:2"},
        {"layout": "cols:2", "max_workspace_bytes": 1},
        {"layout": "transposed", "shapes": [(8, 12), (6, 24)]},
        {"momentum_dtype": torch.bfloat16},
        {"momentum_store": Int8Momentum()},
        {"found_inf": 0.0},
        {"found_inf": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wave_in_one_call_has_the_bits_of_its_ops(dtype, options, monkeypatch):
    options = {"lr": 0.1, "compute_dtype": torch.float16} | options
    shapes, found_inf = options.pop("shapes", [(8, 12), (12, 8), (24, 6), (8, 12)]), options.pop("found_inf", None)
    results, calls = [], []
    run_op = dispatch.run
    monkeypatch.setattr(
        dispatch, "run", lambda name, *args, **kwargs: calls.append(name) or run_op(name, *args, **kwargs)
    )
    for whole in (dispatch.whole, lambda name, lists: None):
        monkeypatch.setattr(dispatch, "whole", whole)
        params = make_params(dtype, shapes)
        optimizer = Muon(params, **options)
        for step in range(3):
            set_grads(params, step)
            params[0].grad = params[0].grad.mT.contiguous().mT
            if found_inf is not None and step == 1:
                optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(found_inf)
            versions = [p._version for p in params]
            with use_backend("cuda,reference"):
                optimizer.step()
            assert all(p._version > version for p, version in zip(params, versions, strict=True))
        results.append(
            [*(p.detach() for p in params), *(t for state in optimizer.state.values() for t in state.values())]
        )
        assert ("prologue" in calls) == (len(results) == 2)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("param", "options"),
    [
        (torch.randn(12, 8).mT, {}),
        (torch.randn(8, 12, dtype=torch.float16), {}),
        (torch.randn(8, 12), {"weight_decay_rule": "cautious"}),
        (torch.randn(8, 12), {"preconditioning": "aol", "ns_coefficients": "turbo", "ns_steps": 4}),
    ],
    ids=["wide and transposed", "float16", "cautious", "aol"],
)
def test_waves_that_are_not_whole(param, options, monkeypatch):
    """What the last product cannot write, or what comes between the ops, goes op by op."""
    results, calls = [], []
    run_op = dispatch.run
    monkeypatch.setattr(
        dispatch, "run", lambda name, *args, **kwargs: calls.append(name) or run_op(name, *args, **kwargs)
    )
    for backend in ("reference", "cuda"):
        p = nn.Parameter(param.detach().clone())
        p.grad = torch.ones_like(p).tril()
        with use_backend(backend):
            Muon([p], lr=0.1, compute_dtype=torch.float16, **options).step()
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=0, atol=4e-3)
    assert calls.count("prologue") == 2


@pytest.mark.parametrize(("elements", "fits"), [(2**31, True), (2**31 + 1, False)])
def test_the_largest_matrix_of_a_whole_wave(host_module, elements, fits):
    one, whole = (0, 1, 1, 1, 1, 1), (0, 1, 1, elements, elements, elements)
    wave = host_module.Wave(host_module.Chains([], [], [], []), [whole], [one], [whole])
    expanded = [torch.zeros(1, 1).expand(1, elements)]
    lists = (host_module.read(tensors, dispatch.PLAIN) for tensors in (expanded, expanded, [torch.zeros(1, 1)]))
    step = host_module.WaveStep(wave, [0], *lists, [1.0])
    assert step.fits() == fits


def test_random_calls():
    counts = kernel_fuzz.run(0, 120, "cpu", "cuda")
    assert len(counts) == 7


@pytest.mark.parametrize("value", [torch.ones(2), torch.ones(1, dtype=torch.float64)], ids=["two", "float64"])
@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
def test_scalars_that_do_not_fit_change_nothing(name, value):
    (p,) = params = make_params(torch.float32, [(8, 12)])
    optimizer = Muon(params, lr=0.1, compute_dtype=torch.float16)
    set_grads(params, 0)
    setattr(optimizer, name, value)
    before = p.detach().clone()
    with use_backend("cuda"), pytest.raises(ValueError, match=f"{name} must be one float32 on cpu"):
        optimizer.step()
    assert torch.equal(p, before) and not optimizer.state[p]["momentum_buffer"].any()
