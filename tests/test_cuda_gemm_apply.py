"""gemm_apply, and gemm_add into another dtype, on the Hopper kernel: the bits of a product and then apply."""

import pytest
import torch
from cases import in_layout

from muon_kernels import ops, use_backend
from muon_kernels.backends import cuda, cuda_products
from muon_kernels.workspace import empty_batch

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("on_hopper")]

SHAPES = [
    (3, 64, 64),
    (2, 256, 640),
    (2, 640, 256),
    (1, 1024, 2048),
    (5, 200, 77),
    (4, 77, 200),
    (1, 1, 9),
    (600, 16, 24),
]
PARAM_DTYPES = [torch.float32, torch.bfloat16]


def batch(count, rows, cols):
    """Random float16 whose rows start on 16 bytes, with NaN between them."""
    x = empty_batch(count, rows, cols, torch.float16, torch.device("cuda"))
    if x.stride(1) > cols:
        x._base.fill_(torch.nan)
    return x.copy_(torch.randn(count, rows, cols, device="cuda") / min(rows, cols) ** 0.5)


def operands(shapes):
    """What ends a chain: factor times X for a wide X, X times the factor's transpose for a tall one."""
    a, b = [], []
    for count, rows, cols in shapes:
        x, factor = batch(count, rows, cols), batch(count, min(rows, cols), min(rows, cols))
        tall = rows > cols
        a.append(x if tall else factor)
        b.append(factor.mT if tall else x)
    return a, b


def rounded_products(a, b):
    """A B in float16 with the kernels' own bits: from gemm_add, on operands padded to multiples of 8."""
    for left, right in zip(a, b, strict=True):
        rows, inner, cols = left.shape[1], left.shape[2], right.shape[2]
        up = [-(-n // 8) * 8 for n in (rows, inner, cols)]
        wide = torch.zeros(len(left), up[0], up[1], dtype=torch.float16, device="cuda")
        wide[:, :rows, :inner] = left
        other = torch.zeros(len(left), up[1], up[2], dtype=torch.float16, device="cuda")
        other[:, :inner, :cols] = right
        out = torch.empty(len(left), up[0], up[2], dtype=torch.float16, device="cuda")
        cuda_products.gemm_add([wide], [other], [], [out], alpha=1.0, beta=0.0)
        yield from out[:, :rows, :cols]


def params_in(layouts, shapes, dtype):
    """One parameter a matrix, within memory whose other elements are remembered."""
    every = [(rows, cols) for count, rows, cols in shapes for _ in range(count)]
    return [
        in_layout(torch.randn(shape, device="cuda", dtype=dtype), layouts[i % len(layouts)])
        for i, shape in enumerate(every)
    ]


def whole(param):
    return param if param._base is None else param._base


@pytest.mark.parametrize(
    "layouts", [["contiguous"], ["padded"], ["offset"], ["contiguous", "offset", "padded"]], ids=str
)
@pytest.mark.parametrize("dtype", PARAM_DTYPES)
def test_bits_of_product_and_apply(dtype, layouts):
    a, b = operands(SHAPES)
    params = params_in(layouts, SHAPES, dtype)
    expected = [whole(p).clone().as_strided(p.shape, p.stride(), p.storage_offset()) for p in params]
    scales = [0.5 + i / len(params) for i in range(len(params))]
    lr = torch.tensor(0.3, device="cuda")
    options = {"lr": lr, "weight_decay": 0.1, "scales": scales, "found_inf": None}
    cuda.apply(expected, list(rounded_products(a, b)), **options)
    with use_backend("cuda"):
        ops.gemm_apply(a, b, params, **options)
    for mine, other in zip(params, expected, strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(whole(mine), whole(other), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [*PARAM_DTYPES, torch.float16])
def test_any_memory_order(dtype):
    """Columns that lie apart, parameters stored transposed, and float16: stored first, the same result."""
    shapes = [(2, 256, 640), (2, 77, 200)]
    a, b = operands(shapes)
    params = params_in(["transposed"], shapes, dtype)
    params[3] = torch.randn(77, 400, device="cuda", dtype=dtype)[:, ::2]
    expected = [p.clone() for p in params]
    options = {"lr": torch.tensor(0.3), "weight_decay": 0.1, "scales": [1.0] * 4, "found_inf": None}
    cuda.apply(expected, list(rounded_products(a, b)), **options)
    with use_backend("cuda"):
        ops.gemm_apply(a, b, params, **options)
    assert all(map(torch.equal, params, expected))


def test_found_inf_changes_nothing():
    a, b = operands(SHAPES[:3])
    params = params_in(["contiguous"], SHAPES[:3], torch.float32)
    before = [p.clone() for p in params]
    with use_backend("cuda"):
        ops.gemm_apply(a, b, params, lr=0.1, scales=[1.0] * 7, found_inf=torch.ones(1, device="cuda"))
    assert all(map(torch.equal, params, before))


@pytest.mark.parametrize("dtype", PARAM_DTYPES)
def test_gemm_add_into_another_dtype(dtype):
    a, b = operands(SHAPES)
    outs = [torch.full(shape, torch.nan, dtype=dtype, device="cuda") for shape in SHAPES]
    with use_backend("cuda"):
        ops.gemm_add(a, b, [], outs, alpha=1.0)
    results = [matrix for out in outs for matrix in out]
    for mine, product in zip(results, rounded_products(a, b), strict=True):
        assert torch.equal(mine, product.to(dtype))


def test_in_a_graph_with_another_lr():
    a, b = operands(SHAPES[:4])
    params = params_in(["contiguous"], SHAPES[:4], torch.bfloat16)
    before = [p.clone() for p in params]
    lr = torch.tensor(0.1, device="cuda")
    with use_backend("cuda"):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            ops.gemm_apply(a, b, params, lr=lr, scales=[1.0] * len(params))
        assert all(map(torch.equal, params, before))
        lr.fill_(0.2)
        graph.replay()
        ops.gemm_apply(a, b, before, lr=lr, scales=[1.0] * len(params))
    torch.cuda.synchronize()
    assert all(map(torch.equal, params, before))


def test_operands_that_the_copy_engine_cannot_read_are_named():
    a, _ = operands([(1, 64, 64)])
    params = params_in(["contiguous"], [(1, 64, 63)], torch.float32)
    odd = torch.randn(1, 64, 63, device="cuda", dtype=torch.float16)
    with use_backend("cuda"), pytest.raises(RuntimeError, match=r"b\[0\] must start on 16 bytes"):
        ops.gemm_apply(a, [odd], params, lr=0.1, scales=[1.0])
