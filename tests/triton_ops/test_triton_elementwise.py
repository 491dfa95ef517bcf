"""The elementwise ops in Triton."""

import pytest
import torch
from cases import SHAPES, in_layout, tensor_list
from triton_cases import DEVICE, DTYPES, INTERPRETED, MARKS

from muon_kernels import ops
from muon_kernels.testing import poison

pytest.importorskip("triton")

from muon_kernels.backends.triton import normalize, sum_squares

pytestmark = MARKS


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


@pytest.mark.parametrize("shape", [(0, 300), (300, 0)])
def test_empty_tensors_have_no_squares(shape):
    tensors = [torch.empty(shape, device=DEVICE) for _ in range(3)]
    sumsq = torch.full((1,), torch.nan, dtype=torch.float64, device=DEVICE)
    ops.prologue(*([tensor] for tensor in tensors), sumsq, momentum=0.9)
    ops.apply(tensors[:1], tensors[2:], lr=0.1, scales=[1.0])
    assert sumsq.item() == 0.0


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


@pytest.mark.parametrize("layout", ["contiguous", "padded", "transposed"])
def test_normalize_by_own_norms(layout, monkeypatch):
    """Also of matrices with more tiles than programs that add up squares, and fewer of them for the last program."""
    monkeypatch.setattr(sum_squares, "MOST_PARTS", 4)
    monkeypatch.setattr(normalize, "_plans", {})
    shapes = ((7, 33), (64, 64), (3, 9000), (300, 250))
    xs = [in_layout(torch.randn(1 + i % 2, *shape, device=DEVICE), layout) for i, shape in enumerate(shapes)]
    outs = [torch.full(x.shape, torch.nan, device=DEVICE) for x in xs]
    sumsq = torch.full((6,), torch.nan, dtype=torch.float64, device=DEVICE)
    ops.normalize(xs, None, outs, eps=1e-7, safety_factor=2.0)
    ops.sum_squares(xs, sumsq)
    squares = [x.double().square().sum((1, 2)) for x in xs]
    torch.testing.assert_close(sumsq, torch.cat(squares), rtol=1e-12, atol=0)
    for x, own, out in zip(xs, squares, outs, strict=True):
        torch.testing.assert_close(out.double(), x.double() / (2.0 * own.sqrt()[:, None, None]), rtol=3e-7, atol=0)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((1, 1), 1), ((0, 5), 0), ((768, 3072), 144), ((2048, 2048), 256), ((9000, 4000), 245), ((2**16, 2**15), 256)],
)
def test_squares_are_added_up_in_parts_that_the_shape_decides(shape, expected):
    for batch in (1, 5):
        assert sum_squares.parts(torch.empty(batch, *shape, device="meta")) == expected


def test_own_norms_have_the_same_bits_alone_and_in_a_group():
    xs = [torch.randn(3, *shape, device=DEVICE) for shape in ((96, 256), (3, 9000), (17, 8192), (130, 200))]
    outs = [torch.full(x.shape, torch.nan, device=DEVICE) for x in xs]
    sumsq = torch.full((12,), torch.nan, dtype=torch.float64, device=DEVICE)
    ops.normalize(xs, None, outs, eps=1e-7)
    ops.sum_squares(xs, sumsq)
    for i, (x, out) in enumerate(zip(xs, outs, strict=True)):
        for j, matrix in enumerate(x.split(1)):
            alone, sum_alone = torch.full_like(matrix, torch.nan), torch.full_like(sumsq[:1], torch.nan)
            ops.normalize([matrix], None, [alone], eps=1e-7)
            ops.sum_squares([matrix], sum_alone)
            assert torch.equal(alone[0], out[j]) and torch.equal(sum_alone[0], sumsq[3 * i + j])


def test_tensors_that_only_lie_differently_are_normalised_as_they_lie():
    x = torch.randn(2, 20, 30, device=DEVICE)
    xs = [in_layout(x, layout) for layout in ("contiguous", "padded", "transposed")]
    squares = x.double().square().sum((1, 2))
    for one in xs:
        for other in xs:
            for sumsq in (squares, None):
                out = torch.empty_strided(x.shape, other.stride(), device=DEVICE).fill_(torch.nan)
                ops.normalize([one], sumsq, [out], eps=0.0)
                torch.testing.assert_close(out.double(), x.double() / squares.sqrt()[:, None, None], rtol=3e-7, atol=0)


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, 0.0), (1e-45, 0.0), (1e-30, 1e-2), (1e30, 1e-2), (torch.inf, torch.nan)]
)
def test_own_norms_at_the_edges_of_float32(value, expected):
    """Of a matrix of many tiles, between matrices that are not at the edges and stay as they are."""
    x = torch.full((3, 10000), 2.0, device=DEVICE).reshape(3, 2, 5000).repeat(1, 1, 4)
    x[1] = value if value < torch.inf else 1.0
    if value == torch.inf:
        x[1, 1, -1] = value
    out = torch.full_like(x, 7.0)
    ops.normalize([x], None, [out], eps=0.0)
    expected /= 2.0
    torch.testing.assert_close(out[1], torch.full_like(out[1], expected), rtol=1e-6, atol=0, equal_nan=True)
    torch.testing.assert_close(out[::2], torch.full_like(out[::2], 5e-3), rtol=1e-6, atol=0)


def test_sums_of_squares_lie_as_the_tensor_says():
    x = torch.randn(3, 40, 300, device=DEVICE)
    sumsq = torch.full((4, 2), torch.nan, dtype=torch.float64, device=DEVICE)
    ops.sum_squares([x, x[:0], x[:1, :0]], sumsq[:, 1])
    torch.testing.assert_close(sumsq[:3, 1], x.double().square().sum((1, 2)), rtol=1e-12, atol=0)
    assert sumsq[3, 1] == 0 and sumsq[:, 0].isnan().all()
    outs = [torch.full_like(x, torch.nan) for _ in range(2)]
    ops.normalize([x], sumsq[:3, 1], outs[:1], eps=0.0)
    ops.normalize([x], sumsq[:3, 1].contiguous(), outs[1:], eps=0.0)
    assert torch.equal(*outs) and outs[0].isfinite().all()


def test_normalize_edges():
    x = torch.ones(4, 2, 2, device=DEVICE)
    sumsq = torch.tensor([0.0, 4.0, torch.inf, torch.nan], dtype=torch.float64, device=DEVICE)
    out = torch.empty_like(x)
    ops.normalize([x], sumsq, [out], eps=0.0)
    assert out[0].eq(0).all() and out[1].eq(0.5).all() and out[2:].isnan().all()
    ops.normalize([x], sumsq, [out], eps=8.0)
    assert out[0].eq(0).all() and out[1].eq(0.125).all() and out[2:].isnan().all()
