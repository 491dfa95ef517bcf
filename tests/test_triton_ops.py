"""Every op on the Triton backend: on the GPU, or in Triton's interpreter on the CPU (see test_triton_interpreter.py).

float16 and float32 in both; bfloat16 on the GPU alone, because the interpreter multiplies bfloat16 bit patterns.
"""

import os
from dataclasses import replace
from itertools import product

import pytest
import torch
from cases import LAYOUTS, SHAPES, Products, general_products, in_layout, symmetric_products, tensor_list

from muon_kernels import ops, use_backend
from muon_kernels.coefficients import resolve_coefficients
from muon_kernels.orthogonalize import Orthogonalizer
from muon_kernels.program import view
from muon_kernels.testing import assert_error_ratio, poison

pytest.importorskip("triton")

from muon_kernels.backends.configs import GemmConfig
from muon_kernels.backends.products import one_by_one, stored_first
from muon_kernels.backends.triton import apply, chains, gemm, gemm_add, gemm_apply, symm_gemm
from muon_kernels.backends.triton.elementwise import MAX_TENSORS
from muon_kernels.backends.triton.launch import run

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float16, torch.float32] if INTERPRETED else [torch.float16, torch.bfloat16, torch.float32]
PRODUCT_DTYPES = DTYPES if INTERPRETED else [torch.float16, torch.bfloat16]
"""On a device float32 products are refused."""
PRODUCTS = (
    list(zip(DTYPES, [True, False], strict=True)) if INTERPRETED else list(product(PRODUCT_DTYPES, [True, False]))
)
"""(dtype, with C). To the interpreter all dtypes are the same lines: each once, with C or without."""
FLOOR = {torch.float16: 1e-4, torch.bfloat16: 1e-3, torch.float32: 1e-6}
"""A tenth of the dtype's unit roundoff, for float32 ten: sums may be taken in another order than torch's."""

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]

SQUARE = GemmConfig(block_m=64, block_n=64, block_k=32, warps=4, stages=2, group=2)
WIDE = GemmConfig(block_m=16, block_n=64, block_k=16, warps=4, stages=2, group=4)
LONG_STEP = GemmConfig(block_m=128, block_n=128, block_k=64, warps=8, stages=2, group=1)
CONFIGS = [None, WIDE] if INTERPRETED else [None, WIDE, SQUARE, LONG_STEP]


@pytest.fixture(autouse=True)
def on_triton_backend():
    with use_backend("triton"):
        yield


@pytest.fixture(params=CONFIGS, ids=lambda c: "chosen" if c is None else f"{c.block_m}x{c.block_n}")
def config(request, monkeypatch):
    """The configuration that the shape asks for, or one that is forced on all shapes."""
    if request.param is not None:
        monkeypatch.setattr(gemm, "_config", lambda *args: request.param)
        monkeypatch.setattr(gemm, "NARROW", request.param)
    elif INTERPRETED:  # which takes long over programs that leave at once: of 4 x 4 tiles these matrices have few
        monkeypatch.setattr(gemm, "NARROW", replace(gemm.NARROW, group=2))


def by_reference(function, p, **factors):
    """What plain torch makes of the same problem list."""
    outs = [torch.empty_like(out) for out in p.outs]
    with use_backend("reference"):
        function(p.a, p.b, p.c, outs, **factors)
    return outs


def check_products(p, plain, alpha, beta=0.0, delta=0.0):
    for i, out in enumerate(p.outs):
        expected = alpha * p.a[i].double() @ p.b[i].double()
        if p.c:
            expected += beta * p.c[i].double()
        expected += delta * torch.eye(*out.shape[1:], dtype=torch.float64, device=out.device)
        assert_error_ratio(out, plain[i], expected, floor=FLOOR[out.dtype])


@pytest.mark.parametrize(("dtype", "with_c"), PRODUCTS)
def test_symm_gemm(dtype, with_c, config):
    p = symmetric_products(dtype, DEVICE, with_c=with_c)
    factors = {"alpha": -1.5, "beta": 0.5, "delta": 0.25}
    plain = by_reference(ops.symm_gemm, p, **factors)
    poison(*p.outs)
    ops.symm_gemm(p.a, p.b, p.c, p.outs, **factors)
    check_products(p, plain, **factors)
    assert all(torch.equal(out, out.mT) for out in p.outs)


@pytest.mark.parametrize(("dtype", "with_c"), PRODUCTS)
def test_gemm_add(dtype, with_c, config):
    p = general_products(dtype, DEVICE, with_c=with_c)
    factors = {"alpha": -1.5, "beta": 0.5}
    plain = by_reference(ops.gemm_add, p, **factors)
    poison(*p.outs)
    ops.gemm_add(p.a, p.b, p.c, p.outs, **factors)
    check_products(p, plain, **factors)


@pytest.mark.parametrize("dtype", PRODUCT_DTYPES)
def test_symm_gemm_of_a_product_that_is_symmetric_up_to_rounding(dtype, config):
    """Q Z of two polynomials in one matrix: the stored result is bitwise symmetric whatever the operands' bits are."""
    x = torch.randn(2, 130, 160, device=DEVICE) / 160**0.5
    r = (x @ x.mT).to(dtype)
    z = (r.double() @ r.double()).to(dtype) + r
    out = torch.full_like(r, torch.nan)
    ops.symm_gemm([r], [z], [r], [out], alpha=1.0, beta=2.0)
    assert torch.equal(out, out.mT)
    expected = r.double() @ z.double() + 2 * r.double()
    assert_error_ratio(out, expected.to(dtype), expected, floor=2e-2 if dtype == torch.bfloat16 else 2e-3)


@pytest.mark.parametrize("op", ["symm_gemm", "gemm_add"])
def test_more_entries_than_one_launch_takes(op):
    """And each matrix has the bits that it has alone."""
    count = 2 * gemm.MAX_ENTRIES + 3
    xs = [torch.randn(1 + i % 2, 16 * (1 + i % 3), 48, device=DEVICE).half() for i in range(count)]
    ys = [x.mT for x in xs]
    outs = [torch.full((x.shape[0], x.shape[1], x.shape[1]), torch.nan, device=DEVICE).half() for x in xs]
    function = getattr(ops, op)
    function(xs, ys, [], outs)
    for x, y, out in zip(xs, ys, outs, strict=True):
        for i in range(x.shape[0]):
            alone = torch.full_like(out[:1], torch.nan)
            function([x[i : i + 1]], [y[i : i + 1]], [], [alone])
            assert torch.equal(alone[0], out[i])


SQUARE_DESCRIBED, WIDE_DESCRIBED = (
    (replace(SQUARE, block_m=16, block_n=16, programs=1), replace(WIDE, block_n=32, programs=2))
    if INTERPRETED
    else (replace(LONG_STEP, programs=1), replace(LONG_STEP, block_m=64, programs=2))
)


def in_rows_of_16(x):
    """A copy in rows as a tensor descriptor takes them, with NaN between them."""
    storage = x.new_full((*x.shape[:2], -(-x.shape[2] // 16) * 16 + 16), torch.nan)
    return storage[:, :, : x.shape[2]].copy_(x)


@pytest.mark.parametrize(("config", "with_c"), [(SQUARE_DESCRIBED, True), (WIDE_DESCRIBED, False)])
@pytest.mark.parametrize("op", ["symm_gemm", "gemm_add"])
def test_products_through_tensor_descriptors(op, config, with_c, monkeypatch):
    """Few programs for many tiles, wide and transposed entries, odd extents; each entry has the bits it has alone."""
    if not INTERPRETED and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs tensor descriptors")
    monkeypatch.setattr(gemm, "_card", lambda device: (90, 2))
    monkeypatch.setattr(gemm, "_config", lambda *args: config)
    shapes = [(2, 67, 41), (1, 33, 85), (3, 17, 50)]
    xs = [in_rows_of_16(torch.randn(shape, device=DEVICE).half()) for shape in shapes]
    xs += [in_rows_of_16(torch.randn(2, cols, 35, device=DEVICE).half()).mT for cols in (50, 17)]
    grams = [in_rows_of_16((x @ x.mT + (x @ x.mT).mT) / 2) for x in xs]
    a, b, c = (xs, [x.mT for x in xs], grams) if op == "symm_gemm" else (grams, xs, xs)
    factors = {"alpha": -0.5, "beta": 2.0} | ({"delta": 0.25} if op == "symm_gemm" else {})
    outs = [torch.full_like(term, torch.nan) for term in c]
    summand = c if with_c else []
    launches = (symm_gemm if op == "symm_gemm" else gemm_add).plan(a, b, summand, outs, **factors)
    assert {(launch.arguments["PROGRAMS"], launch.grid) for launch in launches} == {
        (config.programs, (2 * config.programs,))
    }
    function = getattr(ops, op)
    function(a, b, summand, outs, **factors)
    p = Products(a, b, summand, outs)
    check_products(p, by_reference(function, p, **factors), **factors)
    for i, out in enumerate(outs):
        assert op == "gemm_add" or torch.equal(out, out.mT)
        alone = torch.full_like(out, torch.nan)
        function([a[i]], [b[i]], summand[i : i + 1], [alone], **factors)
        assert torch.equal(alone, out)


def test_the_layout_decides_how_operands_are_loaded(monkeypatch):
    asked = []
    monkeypatch.setattr(gemm, "_config", lambda *args: asked.append(args[-2:]) or SQUARE)
    x = torch.zeros(2, 64, 96, dtype=torch.float16, device=DEVICE)
    for operand, wide, described in [
        (x, True, True),
        (x.mT, True, True),
        (x[:, :33], True, True),
        (x[:, :, :33], False, True),
        (x[:, :, 16:], True, True),
        (x[:, :, 1:65], False, False),
        (x[:, :, ::2], False, False),
        (x.flatten()[: 2 * 64 * 72].view(2, 64, 72), False, False),
        (x[:1].expand(2, 64, 96), True, False),
    ]:
        out = x.new_zeros(2, operand.shape[1], operand.shape[1])
        gemm_add.plan([operand], [operand.mT], [], [out], alpha=1.0, beta=0.0)
        assert asked.pop() == (wide, described), operand.stride()


def test_products_without_terms():
    """k = 0 leaves beta c + delta I; empty results are nobody's business."""
    a, b = torch.empty(2, 5, 0, device=DEVICE).half(), torch.empty(2, 0, 5, device=DEVICE).half()
    c = torch.ones(2, 5, 5, device=DEVICE).half()
    out = torch.full_like(c, torch.nan)
    ops.symm_gemm([a], [b], [c], [out], beta=2.0, delta=1.0)
    assert torch.equal(out, 2 * c + torch.eye(5, device=DEVICE).half())
    ops.gemm_add([a[:, :0]], [b], [], [out[:, :0]])


def test_non_finite_entries_stay_in_their_matrix():
    x = torch.randn(3, 40, 40, device=DEVICE).half()
    x[1, 3, 5] = torch.nan
    out = torch.zeros_like(x)
    ops.symm_gemm([x], [x.mT], [], [out])
    assert out[1, 3].isnan().all() and out[[0, 2]].isfinite().all()


def prologue_call(grad, momentum, out):
    lists = [tensor_list(dtype, DEVICE) for dtype in (grad, momentum, out)]
    sumsq = torch.empty(len(lists[0]), dtype=torch.float64, device=DEVICE)
    poison(*lists[2], sumsq)
    return *lists, sumsq


PROLOGUE_DTYPES = [
    (torch.float32, torch.float32, torch.float16),
    (torch.float16, torch.float32, torch.float32),
    (torch.float32, torch.float16, torch.float16),
    *([] if INTERPRETED else [(torch.bfloat16,) * 3]),
]
PROLOGUE_OPTIONS = [
    {"nesterov": False},
    {"ema": False, "maximize": True},
    {"ema": False, "nesterov": False, "momentum": 0.3},
    {"grad_scale": 3.0, "momentum": 0.0},
    {"grad_scale": 1024.0, "found_inf": 0.0},
]
# Every kernel is compiled for its dtypes, its options and each shape: all dtypes as usual, all options with some dtype.
PROLOGUES = [
    *((dtypes, {}) for dtypes in PROLOGUE_DTYPES),
    *((PROLOGUE_DTYPES[i % len(PROLOGUE_DTYPES)], options) for i, options in enumerate(PROLOGUE_OPTIONS)),
]


@pytest.mark.parametrize(("dtypes", "options"), PROLOGUES, ids=str)
def test_prologue(dtypes, options):
    options = {"momentum": 0.95} | {
        key: torch.tensor([value], device=DEVICE) if key in ("grad_scale", "found_inf") else value
        for key, value in options.items()
    }
    grads, momenta, outs, sumsq = prologue_call(*dtypes)
    before = [(g.clone(), m.double()) for g, m in zip(grads, momenta, strict=True)]
    ops.prologue(grads, momenta, outs, sumsq, **options)
    beta = options["momentum"]
    weight = 1 - beta if options.get("ema", True) else 1
    for i, (grad, old) in enumerate(before):
        assert torch.equal(grads[i], grad)
        g = grad.double() / options.get("grad_scale", 1.0)
        g = -g if options.get("maximize") else g
        assert_rounded_once(momenta[i], beta * old + weight * g)
        m = momenta[i].double()
        assert_rounded_once(outs[i], beta * m + weight * g if options.get("nesterov", True) else m)
        torch.testing.assert_close(sumsq[i], outs[i].double().square().sum(), rtol=1e-12, atol=0)


def assert_rounded_once(actual, expected):
    """Up to a few operations in float32 on numbers of the size of one."""
    torch.testing.assert_close(actual.double(), expected, rtol=0.51 * torch.finfo(actual.dtype).eps, atol=2e-6)


def test_prologue_found_inf_keeps_the_momentum():
    grads, momenta, outs, sumsq = prologue_call(torch.float32, torch.float32, torch.float16)
    grads[3].fill_(torch.inf)
    before = [m.clone() for m in momenta]
    ops.prologue(grads, momenta, outs, sumsq, momentum=0.9, found_inf=torch.ones(1, device=DEVICE))
    assert all(torch.equal(m, b) for m, b in zip(momenta, before, strict=True))
    assert not any(out.any() for out in outs) and not sumsq.any()


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_prologue_sum_of_squares_has_float64_range(size):
    grad = torch.full((100, 100), size, device=DEVICE)
    sumsq = torch.zeros(1, dtype=torch.float64, device=DEVICE)
    ops.prologue([grad], [torch.zeros_like(grad)], [torch.empty_like(grad)], sumsq, momentum=0.0, nesterov=False)
    assert sumsq.item() == pytest.approx(1e4 * size * size, rel=1e-6)


@pytest.mark.parametrize("count", [2, 70])
def test_runs_of_like_tensors(count):
    """More tensors than one launch takes, between tensors that look different, and small and large ones."""
    shapes = [(5, 8)] * count + [(8, 5)] + [(5, 8)] * 3 + [(3, 9000)] * 2
    grads = [torch.randn(s, device=DEVICE) for s in shapes]
    momenta = [torch.randn(s, device=DEVICE) for s in shapes]
    outs = [torch.full(s, torch.nan, device=DEVICE) for s in shapes]
    sumsq = torch.full((len(shapes),), torch.nan, dtype=torch.float64, device=DEVICE)
    expected = [0.5 * m + 0.5 * g for g, m in zip(grads, momenta, strict=True)]
    ops.prologue(grads, momenta, outs, sumsq, momentum=0.5, nesterov=False)
    torch.testing.assert_close(outs, expected)
    torch.testing.assert_close(sumsq, torch.stack([o.double().square().sum() for o in outs]), rtol=1e-12, atol=0)
    before = [m.clone() for m in momenta]
    scales = [1.0 + i % 2 for i in range(len(shapes))]
    ops.apply(momenta, outs, lr=0.5, weight_decay=0.0, scales=scales)
    torch.testing.assert_close(momenta, [b - 0.5 * s * o for b, s, o in zip(before, scales, outs, strict=True)])


def test_elementwise_ops_write_nothing_beside_the_tensors():
    base = torch.full((40, 24), 3.0, device=DEVICE)
    view = base[:, :17]
    grads = [torch.randn(40, 17, device=DEVICE)]
    sumsq = torch.empty(1, dtype=torch.float64, device=DEVICE)
    ops.prologue(grads, grads, [view], sumsq, momentum=0.9)
    ops.apply([view], grads, lr=0.1, scales=[1.0])
    assert (base[:, 17:] == 3.0).all() and not (view == 3.0).any()


def test_strides_that_are_no_matrix_are_refused():
    tensor = torch.randn(4, 6, 8, device=DEVICE)[:, :5, :7]
    with pytest.raises(ValueError, match=r"params and updates at index 0 must merge into at most two dimensions"):
        ops.apply([tensor], [tensor.clone()], lr=0.1, scales=[1.0])


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1, dtype=torch.float64), torch.tensor([0.1])], ids=str)
@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_apply(dtype, lr, on_device, monkeypatch):
    if on_device and isinstance(lr, float):
        pytest.skip("a float is on the host")
    params = tensor_list(dtype, DEVICE)
    updates = [torch.randn_like(p).to(torch.float16) for p in params]
    scales = [0.5 + i % 4 for i in range(len(params))]
    before = [p.to(torch.float64, copy=True) for p in params]
    if on_device:
        lr = lr.to(DEVICE)
        monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    ops.apply(params, updates, lr=lr, weight_decay=0.5, scales=scales)
    for param, old, update, scale in zip(params, before, updates, scales, strict=True):
        assert_rounded_once(param, old * (1 - 0.1 * 0.5) - 0.1 * scale * update.double())


def test_apply_found_inf_changes_nothing():
    params = tensor_list(torch.float32, DEVICE)
    before = [p.clone() for p in params]
    updates = [torch.full_like(p, torch.nan) for p in params]
    found = torch.ones(1, device=DEVICE)
    ops.apply(params, updates, lr=1.0, weight_decay=0.1, scales=[1.0] * len(params), found_inf=found)
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    updates = [torch.ones_like(p) for p in params]
    ops.apply(params, updates, lr=1.0, scales=[1.0] * len(params), found_inf=found - 1)
    assert all(torch.equal(p, b - 1) for p, b in zip(params, before, strict=True))


@pytest.mark.parametrize("op", ["prologue", "apply"])
def test_autograd_counts_the_writes(op):
    p, q = torch.randn(4, 4, device=DEVICE), torch.randn(4, 4, device=DEVICE)
    version = p._version
    if op == "apply":
        ops.apply([p], [q], lr=0.1, scales=[1.0])
    else:
        ops.prologue([q], [p], [q.clone()], torch.empty(1, dtype=torch.float64, device=DEVICE), momentum=0.9)
    assert p._version > version


@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_normalize(dtype, out_dtype):
    """Every shape once for two dtypes, since each is a kernel of its own; its layout changes with the dtypes."""
    layouts = ("contiguous", "padded", "transposed")
    shift = DTYPES.index(dtype) + 2 * DTYPES.index(out_dtype)
    xs = [
        in_layout(torch.randn(1 + i % 3, *shape, device=DEVICE).to(dtype), layouts[(i + shift) % 3])
        for i, shape in enumerate([*SHAPES, (3, 9000)])
    ]
    sumsq = torch.cat([x.double().square().sum((1, 2)) for x in xs])
    outs = [torch.full(x.shape, torch.nan, device=DEVICE, dtype=out_dtype) for x in xs]
    ops.normalize(xs, sumsq, outs, eps=1e-7, safety_factor=2.0)
    first = 0
    for x, out in zip(xs, outs, strict=True):
        norms = 2.0 * sumsq[first : first + x.shape[0], None, None].sqrt()
        first += x.shape[0]
        epsilon = torch.finfo(out_dtype).eps
        torch.testing.assert_close(out.double(), x.double() / norms, rtol=0.51 * epsilon + 2e-7, atol=4e-8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_squares(dtype):
    layouts = ("contiguous", "padded", "transposed")
    xs = [
        in_layout(torch.randn(1 + i % 3, *shape, device=DEVICE).to(dtype), layouts[i % 3])
        for i, shape in enumerate([*SHAPES, (3, 9000)])
    ]
    sumsq = torch.full((sum(map(len, xs)),), torch.nan, dtype=torch.float64, device=DEVICE)
    ops.sum_squares(xs, sumsq)
    expected = torch.cat([x.double().square().sum((1, 2)) for x in xs])
    torch.testing.assert_close(sumsq, expected, rtol=1e-12, atol=0)


def test_normalize_by_own_norms():
    xs = [in_layout(torch.randn(2, *shape, device=DEVICE), "padded") for shape in ((7, 33), (64, 64), (3, 9000))]
    outs = [torch.full(x.shape, torch.nan, device=DEVICE) for x in xs]
    ops.normalize(xs, None, outs, eps=1e-7, safety_factor=2.0)
    for x, out in zip(xs, outs, strict=True):
        norms = 2.0 * x.double().square().sum((1, 2), keepdim=True).sqrt()
        torch.testing.assert_close(out.double(), x.double() / norms, rtol=3e-7, atol=0)


def test_normalize_edges():
    x = torch.ones(4, 2, 2, device=DEVICE)
    sumsq = torch.tensor([0.0, 4.0, torch.inf, torch.nan], dtype=torch.float64, device=DEVICE)
    out = torch.empty_like(x)
    ops.normalize([x], sumsq, [out], eps=0.0)
    assert out[0].eq(0).all() and out[1].eq(0.5).all() and out[2:].isnan().all()
    ops.normalize([x], sumsq, [out], eps=8.0)
    assert out[0].eq(0).all() and out[1].eq(0.125).all() and out[2:].isnan().all()


def test_entries_that_look_alike_share_a_launch(monkeypatch):
    monkeypatch.setattr(gemm, "_config", lambda *args: SQUARE)
    xs = [torch.empty(s, dtype=torch.float16, device=DEVICE) for s in ((48, 64, 64), (12, 128, 64), (12, 64, 128))]
    xs.append(torch.empty(12, 64, 128, dtype=torch.float16, device=DEVICE).mT)
    outs = [torch.empty(*x.shape[:2], x.shape[1], dtype=torch.float16, device=DEVICE) for x in xs]
    launches = gemm_add.plan(xs, [x.mT for x in xs], [], outs, alpha=1.0, beta=0.0)
    assert [launch.arguments["ENTRIES"] for launch in launches] == [3, 1]


@pytest.mark.parametrize("method", ["standard", "gram"])
def test_chains_have_the_bits_of_product_after_product(method, monkeypatch):
    """Twice, so that the plan that was kept is bound to another workspace."""
    monkeypatch.setattr(gemm, "_config", lambda *args: WIDE)
    monkeypatch.setattr(gemm, "NARROW", WIDE)
    groups = [(2, 16, 24), (1, 24, 16), (1, 9, 5)]
    rows = resolve_coefficients("original", 3)
    xs = [torch.randn(*group, device=DEVICE) for group in groups]
    expected = None
    for op in (product_by_product, ops.chains, ops.chains):
        options = {"method": method, "compute_dtype": torch.float16, "device": torch.device(DEVICE)}
        chain = Orthogonalizer(groups, rows, factored=True, **options)
        poison(chain.workspace)
        for buffer, x in zip(chain.plan.normalised, xs, strict=True):
            view(chain.workspace, buffer).copy_(x / x.norm(dim=(1, 2), keepdim=True))
        op(chain.workspace, chain.plan.program)
        buffers = (*chain.plan.factors, *chain.plan.xs)
        results = [view(chain.workspace, buffer) for buffer in buffers if buffer is not None]
        expected = expected or results
        assert all(
            torch.equal(one, other) and one.isfinite().all() for one, other in zip(results, expected, strict=True)
        )


def product_by_product(workspace, program):
    lists = {name: getattr(program, name) for name in ("buffers", "products", "scalars", "chains")}
    one_by_one(symm_gemm.symm_gemm, gemm_add.gemm_add)([workspace], **lists)


def test_chains_advance_in_step(monkeypatch):
    """Wide and tall matrices of one Gram size share all launches but those that X is an operand of."""
    launched = []
    monkeypatch.setattr(chains, "run", lambda launches, device: launched.extend(launches))
    groups = [(12, 64, 256), (12, 256, 64)]
    rows = resolve_coefficients("original", 5)
    options = {"method": "gram", "compute_dtype": torch.float16, "device": torch.device(DEVICE)}
    chain = Orthogonalizer(groups, rows, factored=True, **options)
    ops.chains(chain.workspace, chain.plan.program)
    assert sorted(launch.arguments["ENTRIES"] for launch in launched) == [1] * 6 + [2] * 14


PIECES = replace(WIDE, block_n=256)
"""Whose tiles are handed to the parameters in pieces."""
STEPPED = (
    [
        (torch.float16, torch.float32, False, PIECES),
        (torch.float16, torch.float16, True, None),
        (torch.float32, torch.float32, True, PIECES),
    ]
    if INTERPRETED
    else list(product(PRODUCT_DTYPES, [torch.float32, torch.bfloat16, torch.float16], [False, True], [None, PIECES]))
)
"""(dtype of the products, dtype of the parameters, learning rate on the device, configuration forced on all shapes)"""


def params_for(a, b, dtype, layouts):
    """One parameter a matrix of the products."""
    shapes = [(left.shape[1], right.shape[2]) for left, right in zip(a, b, strict=True) for _ in left]
    return [
        in_layout(torch.randn(shape, device=DEVICE).to(dtype), layouts[i % len(layouts)])
        for i, shape in enumerate(shapes)
    ]


def whole(param):
    return param if param._base is None else param._base


def check_gemm_apply(a, b, params, *, lr=0.3, scales=None, found_inf=None):
    """Every bit, also beside the parameters, is that of a product and then apply."""
    expected = [whole(p).clone().as_strided(p.shape, p.stride(), p.storage_offset()) for p in params]
    lr = lr if isinstance(lr, torch.Tensor) else torch.tensor(lr)
    options = {"lr": lr, "weight_decay": 0.1, "scales": scales or [1.5] * len(params), "found_inf": found_inf}
    stored_first(gemm_add.gemm_add, apply.apply)(a, b, expected, **options)
    before = [p.clone() for p in params]
    ops.gemm_apply(a, b, params, **options)
    for mine, other, old in zip(params, expected, before, strict=True):
        assert mine.isfinite().all() and not torch.equal(mine, old)
        torch.testing.assert_close(whole(mine), whole(other), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("dtype", "param_dtype", "on_device", "forced"), STEPPED)
def test_gemm_apply(dtype, param_dtype, on_device, forced, monkeypatch):
    if forced is not None:
        monkeypatch.setattr(gemm, "_config", lambda *args: forced)
    p = general_products(dtype, DEVICE, with_c=False)
    params = params_for(p.a, p.b, param_dtype, LAYOUTS)
    scales = [0.5 + i // 2 % 3 for i in range(len(params))]
    lr = torch.tensor(0.3)
    found_inf = None
    if on_device:
        lr = lr.to(DEVICE)
        found_inf = torch.zeros(1, device=DEVICE)
        monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    check_gemm_apply(p.a, p.b, params, lr=lr, scales=scales, found_inf=found_inf)


def test_gemm_apply_with_more_parameters_and_entries_than_one_launch_takes(monkeypatch):
    launched = []
    monkeypatch.setattr(gemm_apply, "run", lambda launches, device: launched.extend(launches) or run(launches, device))
    xs = [torch.randn(1, 8, 17 + i, device=DEVICE).half() for i in range(gemm.MAX_ENTRIES + 3)]
    xs.append(torch.randn(MAX_TENSORS + 6, 3, 5, device=DEVICE).half())
    factors = [torch.randn(len(x), *[x.shape[1]] * 2, device=DEVICE).half() for x in xs]
    check_gemm_apply(factors, xs, params_for(factors, xs, torch.float32, ["contiguous"]))
    assert [launch.arguments["ENTRIES"] for launch in launched] == [gemm.MAX_ENTRIES, 3, 1, 1]


@pytest.mark.parametrize("config", [replace(SQUARE_DESCRIBED, block_n=128), WIDE_DESCRIBED])
def test_gemm_apply_through_tensor_descriptors(config, monkeypatch):
    if not INTERPRETED and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs tensor descriptors")
    monkeypatch.setattr(gemm, "_card", lambda device: (90, 2))
    monkeypatch.setattr(gemm, "_config", lambda *args: config)
    xs = [in_rows_of_16(torch.randn(shape, device=DEVICE).half()) for shape in [(2, 67, 41), (1, 33, 185), (3, 17, 50)]]
    xs.append(in_rows_of_16(torch.randn(2, 50, 35, device=DEVICE).half()).mT)
    factors = [in_rows_of_16(torch.randn(len(x), *[x.shape[1]] * 2, device=DEVICE).half()) for x in xs]
    params = params_for(factors, xs, torch.float32, LAYOUTS)
    options = {"lr": torch.tensor(0.3), "weight_decay": 0.1, "scales": [1.5] * len(params), "found_inf": None}
    launches = gemm_apply.plan(factors, xs, params, **options)
    assert {launch.arguments["PROGRAMS"] for launch in launches} == {config.programs}
    check_gemm_apply(factors, xs, params)


def test_gemm_apply_found_inf_changes_nothing():
    a = torch.full((2, 16, 16), torch.nan, device=DEVICE).half()
    params = [torch.randn(16, 16, device=DEVICE) for _ in range(2)]
    before = [p.clone() for p in params]
    ops.gemm_apply([a], [a], params, lr=0.1, scales=[1.0] * 2, found_inf=torch.ones(1, device=DEVICE))
    assert all(map(torch.equal, params, before))


def test_gemm_apply_without_terms():
    """k = 0 leaves the decay; empty parameters are nobody's business."""
    a, b = torch.empty(2, 5, 0, device=DEVICE).half(), torch.empty(2, 0, 3, device=DEVICE).half()
    params = [torch.ones(5, 3, device=DEVICE) for _ in range(2)]
    ops.gemm_apply([a], [b], params, lr=0.5, weight_decay=0.5, scales=[1.0] * 2)
    assert all((p == 0.75).all() for p in params)
    ops.gemm_apply([a[:, :0]], [b], [p[:0] for p in params], lr=0.5, scales=[1.0] * 2)
    ops.gemm_apply([a[:0]], [b[:0]], [], lr=0.5, scales=[])


def test_parameters_that_look_alike_share_a_launch(monkeypatch):
    """Others than in scale or strides, of any number of entries, are entries of it; others in memory order are not."""
    monkeypatch.setattr(gemm, "_config", lambda *args: SQUARE)
    xs = [torch.empty(n, 64, 64, dtype=torch.float16, device=DEVICE) for n in (3, 2, 4)]
    params = params_for(xs, xs, torch.float32, ["contiguous"])
    params[8] = in_layout(params[8], "transposed")
    options = {"lr": torch.tensor(0.3), "weight_decay": 0.1, "scales": [1.0] * 2 + [2.0] * 7, "found_inf": None}
    launches = gemm_apply.plan(xs, xs, params, **options)
    assert [(launch.arguments["ENTRIES"], len(launch.arguments["parameters"])) for launch in launches] == [
        (4, 8),
        (1, 1),
    ]
