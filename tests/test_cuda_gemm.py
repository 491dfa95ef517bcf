"""The Hopper products against float64 on the same rounded inputs: every tile shape, memory order, group and stride."""

import re

import pytest
import torch

from muon_kernels import ops, use_backend
from muon_kernels.backends import cuda_products
from muon_kernels.backends.cuda_products import launch
from muon_kernels.testing import assert_error_ratio

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("on_hopper")]

DTYPES = (torch.bfloat16, torch.float16)
FULL_TILES = (-1, 0, 1, 2, 3, 4, 5)
SYMMETRIC_TILES = (-1, 0, 1, 3, 4, 5)
SYMMETRIC_SHAPES = [(1, 8, 8), (1, 136, 264), (3, 200, 1000), (2, 768, 768), (1, 264, 72), (2, 1000, 520),
                    (5, 128, 128), (1, 1104, 200)]  # fmt: skip
FULL_SHAPES = [(1, 8, 8, 8), (2, 136, 264, 72), (1, 200, 1000, 200), (3, 768, 520, 768), (1, 1032, 328, 1024),
               (1, 72, 1048, 136)]  # fmt: skip

FLOOR = 1e-4  # fp32 accumulation in another order than torch's


def batch_of(count, rows, cols, dtype, *, transposed=False, poisoned=False):
    """A random (or NaN) batch whose rows and matrices lie further apart than they need to, in a NaN storage."""
    if transposed:
        return batch_of(count, cols, rows, dtype, poisoned=poisoned).mT
    row = -(-cols // 8) * 8 + 8
    step = row * rows + 24
    view = torch.full((step * count + 64,), torch.nan, device="cuda", dtype=dtype)
    view = view.as_strided((count, rows, cols), (step, row, 1))
    return view if poisoned else view.copy_(torch.randn(count, rows, cols, device="cuda") / cols**0.5)


def symmetric_batch(count, rows, dtype):
    half = batch_of(count, rows, rows, dtype)
    whole = torch.empty_like(half)
    return whole.copy_(half + half.mT)


def assert_nothing_else_written(out):
    storage = torch.as_strided(out, (out.untyped_storage().nbytes() // out.itemsize,), (1,), 0).clone()
    storage.as_strided(out.shape, out.stride(), out.storage_offset()).fill_(torch.nan)
    assert storage.isnan().all()


def assert_right(out, exact):
    assert_error_ratio(out, exact.to(out.dtype), exact, floor=FLOOR)
    assert_nothing_else_written(out)


@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", SYMMETRIC_TILES)
def test_gram_products(tile, dtype, tall):
    xs = [batch_of(*shape, dtype, transposed=tall) for shape in SYMMETRIC_SHAPES]
    alone = [batch_of(x.shape[0], x.shape[1], x.shape[1], dtype, poisoned=True) for x in xs]
    grouped = [batch_of(x.shape[0], x.shape[1], x.shape[1], dtype, poisoned=True) for x in xs]
    for x, out in zip(xs, alone, strict=True):
        launch(True, [x], [x.mT], [], [out], alpha=0.5, beta=0.0, tile=tile)
        assert_right(out, 0.5 * (x.double() @ x.mT.double()))
        assert torch.equal(out, out.mT)
    launch(True, xs, [x.mT for x in xs], [], grouped, alpha=0.5, beta=0.0, tile=tile)
    for one, other in zip(alone, grouped, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("b_transposed", [False, True])
@pytest.mark.parametrize("out_transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", SYMMETRIC_TILES)
def test_symmetric_polynomial(tile, dtype, out_transposed, b_transposed):
    for count, rows in [(1, 8), (2, 136), (3, 200), (1, 768), (2, 1032)]:
        a, c = symmetric_batch(count, rows, dtype), symmetric_batch(count, rows, dtype)
        out = batch_of(count, rows, rows, dtype, transposed=out_transposed, poisoned=True)
        b = a.mT if b_transposed else a
        launch(True, [a], [b], [c], [out], alpha=1.5, beta=-0.75, delta=0.25, tile=tile)
        exact = 1.5 * (a.double() @ a.double()) - 0.75 * c.double()
        exact.diagonal(dim1=-2, dim2=-1).add_(0.25)
        assert_right(out, exact)
        assert torch.equal(out, out.mT)


@pytest.mark.parametrize("orders", [(a, b, out) for a in (0, 1) for b in (0, 1) for out in (0, 1)], ids=str)
@pytest.mark.parametrize("with_c", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", FULL_TILES)
def test_general_products(tile, dtype, with_c, orders):
    a_order, b_order, out_order = orders
    a = [batch_of(count, m, k, dtype, transposed=a_order) for count, m, _, k in FULL_SHAPES]
    b = [batch_of(count, k, n, dtype, transposed=b_order) for count, _, n, k in FULL_SHAPES]
    c = [batch_of(count, m, n, dtype, transposed=out_order) for count, m, n, _ in FULL_SHAPES] if with_c else []
    grouped, alone = (
        [batch_of(count, m, n, dtype, transposed=out_order, poisoned=True) for count, m, n, _ in FULL_SHAPES]
        for _ in range(2)
    )
    options = {"alpha": 0.5, "beta": 2.0 if with_c else 0.0, "tile": tile}
    launch(False, a, b, c, grouped, **options)
    for i, out in enumerate(grouped):
        assert_right(out, 0.5 * (a[i].double() @ b[i].double()) + (2.0 * c[i].double() if with_c else 0.0))
        launch(False, [a[i]], [b[i]], c[i : i + 1], [alone[i]], **options)
        assert torch.equal(out, alone[i])


@pytest.mark.parametrize("tile", FULL_TILES)
def test_same_bits_on_every_run_and_for_every_tile(tile):
    """Many tiles and few k steps, so that stages are reused quickly; three links without a pause, as in a chain."""
    x = torch.randn(2, 1536, 1160, device="cuda").bfloat16()
    y = torch.randn(4, 136, 2048, device="cuda").bfloat16()
    c = symmetric_batch(4, 2048, torch.bfloat16)
    gram, poly, full, first = (torch.empty(4, 2048, 2048, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    chain, last = (torch.empty(2, 1536, 1536, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    symmetric_tile = tile if tile in SYMMETRIC_TILES else -1
    launch(False, [y.mT], [y], [c], [first], alpha=1.0, beta=1.0, tile=0)
    for run in range(30):
        for out in (gram, poly, full, chain):
            out.fill_(torch.nan)
        launch(True, [x], [x.mT], [], [chain], alpha=1e-3, beta=0.0, tile=symmetric_tile)
        launch(False, [chain], [x], [], [torch.empty_like(x)], alpha=1.0, beta=0.0, tile=tile)
        launch(True, [y.mT], [y], [], [gram], alpha=1.0, beta=0.0, tile=symmetric_tile)
        launch(True, [y.mT], [y], [c], [poly], alpha=1.0, beta=1.0, tile=symmetric_tile)
        launch(False, [y.mT], [y], [c], [full], alpha=1.0, beta=1.0, tile=tile)
        assert torch.equal(poly, first) and torch.equal(full, first)
        assert run == 0 or torch.equal(chain, last)
        last.copy_(chain)


@pytest.mark.parametrize("tile", FULL_TILES)
def test_tiles_that_are_stored_under_the_products_of_the_next(tile):
    """Several tiles a block; whether the next has stages enough for all stores depends on its k."""
    depths = (1160, 520, 456, 448, 264, 200, 72)
    a = [batch_of(2, 1536, k, torch.float16) for k in depths]
    b = [batch_of(2, k, 1544, torch.float16) for k in depths]
    full = [batch_of(2, 1536, 1544, torch.float16, poisoned=True) for _ in depths]
    launch(False, a, b, [], full, alpha=1.0, beta=0.0, tile=tile)
    for left, right, out in zip(a, b, full, strict=True):
        assert_right(out, left.double() @ right.double())
    if tile in SYMMETRIC_TILES:
        gram = [batch_of(2, 1536, 1536, torch.float16, poisoned=True) for _ in depths]
        launch(True, a, [x.mT for x in a], [], gram, alpha=1.0, beta=0.0, tile=tile)
        for x, out in zip(a, gram, strict=True):
            assert_right(out, x.double() @ x.mT.double())
            assert torch.equal(out, out.mT)


def test_sizes_across_the_unit_stride_are_free():
    a, b, x = (batch_of(2, *shape, torch.float16) for shape in ((101, 64), (64, 72), (37, 72)))
    product, gram = (batch_of(2, rows, 72, torch.float16, poisoned=True) for rows in (101, 72))
    launch(False, [a], [b], [], [product], alpha=1.0, beta=0.0)
    assert_right(product, a.double() @ b.double())
    launch(True, [x.mT], [x], [], [gram], alpha=1.0, beta=0.0)
    assert_right(gram, x.mT.double() @ x.double())


def test_many_entries_in_several_launches():
    xs = [batch_of(1 + i % 3, 64 + 8 * i, 96, torch.bfloat16, transposed=i % 2) for i in range(40)]
    outs = [batch_of(x.shape[0], x.shape[1], x.shape[1], torch.bfloat16, poisoned=True) for x in xs]
    with use_backend("cuda"):
        ops.symm_gemm(xs, [x.mT for x in xs], [], outs)
    for x, out in zip(xs, outs, strict=True):
        assert_right(out, x.double() @ x.mT.double())


def test_beyond_two_to_the_31_elements(huge_tensors):
    count, rows = 3, 256
    step = 2**30 + 8
    x = torch.zeros(2 * step + rows * rows, device="cuda", dtype=torch.bfloat16).as_strided(
        (count, rows, rows), (step, rows, 1)
    )
    x.copy_(torch.randn(count, rows, rows, device="cuda"))
    out = torch.full((2 * step + rows * rows,), torch.nan, device="cuda", dtype=torch.bfloat16).as_strided(
        (count, rows, rows), (step, rows, 1)
    )
    launch(True, [x], [x.mT], [], [out], alpha=1.0, beta=0.0)
    exact = x.double() @ x.mT.double()
    assert_error_ratio(out, exact.to(out.dtype), exact, floor=FLOOR)


def test_works_in_a_graph_and_on_another_stream():
    x = batch_of(2, 264, 520, torch.float16)
    out = batch_of(2, 264, 264, torch.float16, poisoned=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch(True, [x], [x.mT], [], [out], alpha=1.0, beta=0.0)
        launch(True, [out], [out.mT], [out], [twice := torch.empty_like(out)], alpha=1.0, beta=1.0)
    graph.replay()
    assert_right(out, x.double() @ x.mT.double())
    exact = out.double() @ out.double() + out.double()
    assert_error_ratio(twice, exact.to(out.dtype), exact, floor=FLOOR)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x.float(), "float32"),
        (lambda x: x[:, :, 1:], "address 2 mod 16"),
        (lambda x: x[:, :, :60], r"shape \[1, 64, 60\]"),
    ],
)
def test_what_the_kernel_cannot_take_is_named(make, message):
    x = make(torch.randn(1, 64, 64, device="cuda").bfloat16())
    out = torch.empty(1, 64, 64, device="cuda", dtype=torch.bfloat16)
    with pytest.raises((TypeError, ValueError), match=message):
        launch(True, [x], [x.mT], [], [out], alpha=1.0, beta=0.0)
    assert re.search(message, cuda_products.refusal("symm_gemm", out.device, [[x], [x.mT], [], [out]]))
