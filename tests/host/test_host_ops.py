"""Every op from Python to the launch.

The data are small dyadic numbers, exact in every dtype, so that results must equal the reference bit for bit.
"""

import kernel_fuzz
import pytest
import torch
from cases import LAYOUTS, SHAPES, in_layout

from muon_kernels import ops, use_backend
from muon_kernels.workspace import empty_batch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


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


def test_random_calls():
    counts = kernel_fuzz.run(0, 120, "cpu", "cuda")
    assert len(counts) == 7
