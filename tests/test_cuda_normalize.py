"""The CUDA kernels of normalize and sum_squares against float64 oracles on the same rounded inputs."""

import itertools

import pytest
import torch
from cases import LAYOUTS, SIZES, assert_rounded_once, in_layout, randn

from muon_kernels import ops, use_backend
from muon_kernels.testing import poison

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("on_cuda_backend")]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("layout", ["dense", "padded", "transposed"])
def test_normalize(layout, out_dtype, dtype):
    shapes = [(3, 4, 5), (1, 129, 64), (7, 63, 65), (2, 300, 8), (1, 1, 1), (5, 1, 4099)]
    xs = [torch.randn(shape, device="cuda").to(dtype) for shape in shapes]
    if layout == "transposed":
        xs = [x.mT.contiguous().mT for x in xs]
    width = 3 if layout == "padded" else 0
    memory = [torch.full((b, r, c + width), torch.nan, dtype=out_dtype, device="cuda") for b, r, c in shapes]
    outs = [m[:, :, : m.shape[2] - width] for m in memory]
    sumsq = torch.cat([x.double().square().sum((1, 2)) for x in xs])
    with use_backend("cuda"):
        ops.normalize(xs, sumsq, outs, eps=1e-7, safety_factor=1.5)
    for x, out, m in zip(xs, outs, memory, strict=True):
        exact = x.double() / (1.5 * x.double().square().sum((1, 2), keepdim=True).sqrt())
        torch.testing.assert_close(out.double(), exact, rtol=2 * torch.finfo(out_dtype).eps, atol=1e-7)
        assert m[:, :, m.shape[2] - width :].isnan().all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_squares(dtype, layout):
    """Also more matrices than a table holds, and sizes beyond float32's range when squared."""
    shapes = [(1, 1, 1), (3, 33, 7), (1100, 5, 8), (2, 300, 257), (0, 4, 4), (1, 1, 9)]
    size = 1.0 if dtype == torch.float16 else 1e30
    xs = [in_layout((torch.randn(shape) * size).to("cuda", dtype), layout) for shape in shapes]
    sumsq = torch.full((sum(s[0] for s in shapes),), torch.nan, dtype=torch.float64, device="cuda")
    with use_backend("cuda"):
        ops.sum_squares(xs, sumsq)
    expected = torch.cat([x.double().square().sum((1, 2)) for x in xs])
    torch.testing.assert_close(sumsq, expected, rtol=1e-12, atol=0)


def test_normalize_edges():
    x = torch.ones(5, 40, 50, device="cuda")
    sumsq = torch.tensor([0.0, 4.0, torch.inf, torch.nan, 1e-80], dtype=torch.float64, device="cuda")
    out = torch.full_like(x, torch.nan)
    with use_backend("cuda"):
        ops.normalize([x], sumsq, [out], eps=0.0)
    assert out[0].eq(0).all() and out[1].eq(0.5).all() and out[2:4].isnan().all() and out[4].eq(0).all()


# ---- normalize by own norms ------------------------------------------------------------------------------------------

OWN_NORMS = [(1, 1, 1), (0, 4, 4), (3, 4, 5), (5, 1, 4099), (2, 64, 64), (3, 129, 127), (3, 150, 200)]
OWN_NORMS += [(2, 256, 250), (2, 300, 330), (2, 400, 500)]
LARGE = [(1, 880, 890), (2, 900, 901)]
"""(batch, rows, cols): clusters of 1 to 16 blocks; the largest that a cluster takes, and what is too large for one."""


def normalized(xs, outs, **options):
    """`outs` after the op, which must have written all of them and nothing else of their memory."""
    before = [x.clone() for x in xs]
    ops.normalize(xs, None, outs, **options)
    for x, old, out in zip(xs, before, outs, strict=True):
        assert torch.equal(x, old)
        memory = out.as_strided((out.untyped_storage().nbytes() // out.itemsize,), (1,), 0)
        assert memory.isnan().sum() == memory.numel() - out.numel()
    return outs


def check_own_norms(xs, outs, safety_factor=1.5):
    for x, out in zip(xs, normalized(xs, outs, eps=1e-7, safety_factor=safety_factor), strict=True):
        exact = x.double() / (safety_factor * x.double().square().sum((1, 2), keepdim=True).sqrt())
        assert_rounded_once(out, exact, exact.abs())


def like(x, dtype, layout):
    return in_layout(torch.full(x.shape, torch.nan, dtype=dtype, device="cuda"), layout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("layouts", list(itertools.product(LAYOUTS, repeat=2)), ids="-".join)
def test_normalize_by_own_norms(layouts, out_dtype, dtype):
    shapes = OWN_NORMS + LARGE if dtype == out_dtype else OWN_NORMS
    xs = [in_layout(torch.randn(shape, device="cuda").to(dtype), layouts[0]) for shape in shapes]
    check_own_norms(xs, [like(x, out_dtype, layouts[1]) for x in xs])


def test_normalize_by_own_norms_of_views_that_begin_and_end_anywhere():
    xs, outs = [], []
    for i, n in enumerate(SIZES):
        for offset in (0, 1, 3):
            xs.append(randn((1, 1, n), torch.bfloat16, offset))
            outs.append(in_layout(torch.full_like(xs[-1], torch.nan), LAYOUTS[(i + offset) % 4]))
    check_own_norms(xs, outs)


@pytest.mark.parametrize("layout", ["contiguous", "padded"])
def test_normalize_by_own_norms_of_thousands_of_matrices(layout):
    """More than a table holds, of several sizes of clusters."""
    shapes = [(1400, 5, 8), (500, 120, 130), (500, 250, 200)]
    xs = [in_layout(torch.randn(shape, device="cuda").bfloat16(), layout) for shape in shapes]
    check_own_norms(xs, [like(x, torch.float16, layout) for x in xs])


def test_normalize_by_own_norms_same_bits_alone_and_in_company():
    shapes = [*OWN_NORMS, *LARGE, (7, 500, 300), (3, 768, 768)]
    xs = [
        in_layout(torch.randn(shape, device="cuda").bfloat16(), LAYOUTS[i % len(LAYOUTS)])
        for i, shape in enumerate(shapes)
    ]
    outs = normalized(
        xs, [like(x, torch.float32, "padded" if i % 2 else "contiguous") for i, x in enumerate(xs)], eps=0.0
    )
    for x, out in zip(xs, outs, strict=True):
        together = out.clone()
        for i in range(len(x)):
            out[i].fill_(torch.nan)
            ops.normalize([x[i : i + 1]], None, [out[i : i + 1]], eps=0.0)
        assert torch.equal(out, together)


@pytest.mark.parametrize("shape", [(1, 1), (40, 50), (300, 301), (800, 900), (1000, 1100)])
def test_normalize_by_own_norms_edges(shape):
    """Neighbours of matrices that are zero, not finite, tiny or huge are as they would be."""
    x = torch.randn(7, *shape, device="cuda")
    x[0], x[3], x[4], x[6] = 0.0, x[3] * 1e-30, x[4].sign() * 1e30, x[6].sign() * 1e-44
    x[1, -1, -1], x[5, 0, 0] = torch.nan, -torch.inf
    out = torch.full_like(x, torch.nan)
    ops.normalize([x], None, [out], eps=0.0)
    norms = x.double().square().sum((1, 2), keepdim=True).sqrt()
    exact = x.double() / norms
    assert out[0].eq(0).all() and out[1].isnan().all() and out[5].isnan().all() and out[6].eq(0).all()
    for i in (2, 3, 4):
        assert_rounded_once(out[i], exact[i], exact[i].abs())
    ops.normalize([x], None, [out], eps=2e6)
    assert out[0].eq(0).all() and out[1].isnan().all() and out[5].isnan().all() and out[6].eq(0).all()
    for i in (2, 3):
        assert_rounded_once(out[i], x[i].double() / 2e6, x[i].double().abs() / 2e6)
    assert_rounded_once(out[4], exact[4], exact[4].abs())


def test_normalize_by_own_norms_on_another_stream():
    x = torch.zeros(3, 900, 1000, device="cuda")
    out = torch.full_like(x, torch.nan)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # work on the wrong stream would overtake this
        x.normal_()
        check_own_norms([x], [out])
    torch.cuda.current_stream().wait_stream(stream)


def test_normalize_by_own_norms_in_a_cuda_graph_sees_new_matrices():
    xs = [torch.randn(shape, device="cuda").bfloat16() for shape in [*OWN_NORMS, *LARGE]]
    outs = [like(x, torch.float16, "padded") for x in xs]
    check_own_norms(xs, outs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.normalize(xs, None, outs, eps=1e-7)
    for _ in range(3):
        for x in xs:
            x.normal_()
        poison(*outs)
        graph.replay()
        for x, out in zip(xs, outs, strict=True):
            exact = x.double() / x.double().square().sum((1, 2), keepdim=True).sqrt()
            assert_rounded_once(out, exact, exact.abs())


def test_normalize_after_and_before_other_kernels():
    """Whose ends and beginnings its launches overlap: what it reads was just written, what it wrote is read at once."""
    for _ in range(20):
        x = torch.randn(4, 500, 600, device="cuda")
        half, out, again = x.half(), torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
        norms = torch.empty(4, dtype=torch.float64, device="cuda")
        ops.normalize([half], None, [out], eps=0.0)
        ops.normalize([out], None, [again], eps=0.0)
        ops.sum_squares([again], norms)
        torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-5, atol=0)
