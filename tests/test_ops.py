"""Every op: registration (opcheck, fullgraph), the reference against float64 arithmetic, and what is refused."""

import pytest
import torch
from cases import LAYOUTS, general_products, in_layout, small_program, symmetric_products, tensor_list
from torch.utils import _pytree as pytree

from muon_kernels import ops
from muon_kernels.testing import assert_error_ratio, poison

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
EPSILON = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-2}


def prologue_call(dtype=torch.float32, out_dtype=torch.bfloat16, **options):
    grads = tensor_list(dtype, "cpu")
    momenta = tensor_list(dtype, "cpu")
    outs = [torch.full_like(g, torch.nan, dtype=out_dtype) for g in grads]
    sumsq = torch.full((len(grads),), torch.nan, dtype=torch.float64)
    settings = {
        "momentum": 0.9,
        "nesterov": True,
        "ema": True,
        "maximize": False,
        "grad_scale": None,
        "found_inf": None,
    }
    return (grads, momenta, outs, sumsq), settings | options


ONE = {"alpha": 1.0, "beta": 0.0}


def calls():
    """Of every op: what it registers does not depend on shapes, so of long lists a matrix in each layout."""
    few = len(LAYOUTS)
    (*lists, sumsq), kwargs = prologue_call()
    yield "prologue", (*(tensors[:few] for tensors in lists), sumsq[:few]), kwargs
    x = [torch.randn(3, 4, 5), torch.randn(1, 2, 2)]
    for sumsq in (torch.rand(4, dtype=torch.float64), None):
        yield "normalize", (x, sumsq, [torch.empty_like(t) for t in x]), {"eps": 1e-7, "safety_factor": 1.0}
    yield "sum_squares", (x, torch.empty(4, dtype=torch.float64)), {}
    for with_c in (True, False):
        p = symmetric_products(torch.float32, "cpu", with_c=with_c)
        yield "symm_gemm", (p.a[:few], p.b[:few], p.c[:few], p.outs[:few]), {"alpha": 1.0, "beta": 0.5, "delta": 0.25}
        p = general_products(torch.float32, "cpu", with_c=with_c)
        yield "gemm_add", (p.a[:few], p.b[:few], p.c[:few], p.outs[:few]), {"alpha": 1.0, "beta": 0.5}
    program = small_program()
    yield (
        "chains",
        ([torch.randn(program.elements)],),
        {
            "buffers": list(program.buffers),
            "products": list(program.products),
            "scalars": list(program.scalars),
            "chains": list(program.chains),
        },
    )
    a, b = [torch.randn(2, 3, 4), torch.randn(1, 5, 5)], [torch.randn(2, 4, 6), torch.randn(1, 5, 2)]
    yield "gemm_add", (a, b, [], [torch.empty(2, 3, 6).bfloat16(), torch.empty(1, 5, 2).bfloat16()]), ONE
    yield (
        "gemm_apply",
        (a, b, [torch.randn(3, 6), torch.randn(3, 6), torch.randn(5, 2)]),
        {"lr": torch.tensor(0.1), "weight_decay": 0.1, "scales": [1.0, 2.0, 3.0], "found_inf": None},
    )
    scales = [1.0] * few
    yield (
        "apply",
        (tensor_list(torch.float32, "cpu")[:few], tensor_list(torch.bfloat16, "cpu")[:few]),
        {
            "lr": torch.tensor(0.1),
            "weight_decay": 0.1,
            "scales": scales,
            "found_inf": None,
        },
    )


@pytest.mark.parametrize(
    ("name", "args", "kwargs"), [pytest.param(*c, id=f"{c[0]}-{i}") for i, c in enumerate(calls())]
)
def test_opcheck(name, args, kwargs):
    torch.library.opcheck(getattr(torch.ops.muon_kernels, name).default, args, kwargs)


@pytest.mark.parametrize(
    ("name", "args", "kwargs"), [pytest.param(*c, id=f"{c[0]}-{i}") for i, c in enumerate(calls())]
)
def test_fullgraph(name, args, kwargs):
    """The public function, checks included, compiles without a graph break and changes the same tensors."""

    def copies():
        return pytree.tree_map_only(torch.Tensor, torch.clone, list(args))

    def function(*args, **kwargs):
        if name == "chains":
            ops.chains(args[0][0], small_program())
        else:
            getattr(ops, name)(*args, **kwargs)

    torch.compiler.reset()  # a function may be compiled anew eight times only
    eager, compiled = copies(), copies()
    function(*eager, **kwargs)
    torch.compile(function, fullgraph=True, backend="aot_eager")(*compiled, **kwargs)
    torch.testing.assert_close(compiled, eager, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_prologue_formula(dtype, nesterov, ema):
    out_dtype = torch.float64 if dtype == torch.float64 else torch.bfloat16
    (grads, momenta, outs, sumsq), options = prologue_call(dtype, out_dtype, nesterov=nesterov, ema=ema)
    options |= {"maximize": True, "grad_scale": torch.tensor([4.0])}
    before = [(g.clone(), m.clone()) for g, m in zip(grads, momenta, strict=True)]
    ops.prologue(grads, momenta, outs, sumsq, **options)
    for i, (grad, old) in enumerate(before):
        assert torch.equal(grads[i], grad)
        g = -grad.double() / 4.0
        m = 0.9 * old.double() + (0.1 if ema else 1.0) * g
        torch.testing.assert_close(momenta[i].double(), m, rtol=EPSILON[dtype], atol=EPSILON[dtype] / 10)
        m = momenta[i].double()
        u = m if not nesterov else (0.1 * g + 0.9 * m if ema else g + 0.9 * m)
        torch.testing.assert_close(outs[i].double(), u, rtol=EPSILON[out_dtype], atol=EPSILON[out_dtype] / 10)
        assert sumsq[i].item() == pytest.approx(outs[i].double().square().sum().item(), rel=1e-12)


def test_prologue_rounds_once():
    """A 16-bit gradient enters in float32: the stored result is the correctly rounded one."""
    (grads, momenta, outs, sumsq), options = prologue_call(torch.bfloat16, torch.bfloat16)
    expected = [m.float().lerp(g.float(), 1 - 0.9).bfloat16() for g, m in zip(grads, momenta, strict=True)]
    ops.prologue(grads, momenta, outs, sumsq, **options)
    assert all(torch.equal(m, e) for m, e in zip(momenta, expected, strict=True))


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_prologue_sum_of_squares_has_float64_range(size):
    grad = torch.full((4, 4), size)
    sumsq = torch.zeros(1, dtype=torch.float64)
    ops.prologue([grad], [torch.zeros(4, 4)], [torch.empty(4, 4)], sumsq, momentum=0.0, nesterov=False)
    assert sumsq.item() == pytest.approx(16 * size * size, rel=1e-6)


def test_prologue_found_inf_keeps_the_momentum():
    (grads, momenta, outs, sumsq), options = prologue_call(found_inf=torch.tensor([1.0]))
    grads[3].fill_(torch.inf)
    before = [m.clone() for m in momenta]
    ops.prologue(grads, momenta, outs, sumsq, **options)
    assert all(torch.equal(m, b) for m, b in zip(momenta, before, strict=True))
    assert all(not out.any() for out in outs)
    assert not sumsq.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_normalize(dtype):
    xs = [torch.randn(3, 4, 5).to(dtype), torch.randn(1, 9, 2).to(dtype)]
    sumsq = torch.cat([x.double().square().sum((1, 2)) for x in xs])
    outs = [torch.full_like(x, torch.nan) for x in xs]
    ops.normalize(xs, sumsq, outs, eps=1e-7, safety_factor=2.0)
    for out in outs:
        torch.testing.assert_close(
            out.double().square().sum((1, 2)).sqrt(), out.new_full((), 0.5, dtype=torch.float64).expand(out.shape[0]),
            rtol=EPSILON[dtype], atol=0,
        )  # fmt: skip


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", DTYPES)
def test_normalize_by_own_norms(dtype, size):
    xs = [in_layout(torch.randn(2, 7, 5).to(dtype) * size, layout) for layout in LAYOUTS] + [
        torch.empty(0, 3, 3).to(dtype)
    ]
    outs = [torch.full_like(x, torch.nan, dtype=torch.float64) for x in xs]
    ops.normalize(xs, None, outs, eps=0.0, safety_factor=2.0)
    for x, out in zip(xs, outs, strict=True):
        expected = x.double() / (2 * x.double().square().sum((1, 2), keepdim=True).sqrt())
        torch.testing.assert_close(out, expected, rtol=1e-14, atol=0)


def test_normalize_by_own_norms_edges():
    x = torch.tensor([0.0, 1.0, torch.inf, torch.nan, 1e-42])[:, None, None].repeat(1, 2, 2)
    out = torch.full_like(x, torch.nan)
    ops.normalize([x], None, [out], eps=0.0)
    assert out[0].eq(0).all() and out[1].eq(0.5).all() and out[2:4].isnan().all() and out[4].eq(0).all()
    ops.normalize([x], None, [out], eps=8.0)
    assert out[1].eq(0.125).all() and out[2:4].isnan().all()


@pytest.mark.parametrize("which", [0, 1])
def test_ops_refuse_what_torch_negates_as_it_reads_it(which):
    lists = [[torch.ones(2, 3), torch.ones(2, 3)] for _ in range(2)]
    lists[which][1] = torch.ones(2, 3, dtype=torch.complex64).conj().imag
    with pytest.raises(ValueError, match=rf"{('params', 'updates')[which]}\[1\] must not be negated lazily"):
        ops.apply(*lists, lr=0.1, scales=[1.0, 1.0])
    assert all(torch.equal(tensors[0], torch.ones(2, 3)) for tensors in lists)


def test_normalize_edges():
    x = torch.ones(4, 2, 2)
    sumsq = torch.tensor([0.0, 4.0, torch.inf, torch.nan], dtype=torch.float64)
    out = torch.empty_like(x)
    ops.normalize([x], sumsq, [out], eps=0.0)
    assert out[0].eq(0).all() and out[1].eq(0.5).all() and out[2:].isnan().all()
    ops.normalize([x], sumsq, [out], eps=8.0)
    assert out[:2].eq(torch.tensor([0.0, 0.125])[:, None, None]).all() and out[2:].isnan().all()


@pytest.mark.parametrize("with_c", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products(dtype, with_c):
    for make, function, delta in (
        (symmetric_products, ops.symm_gemm, {"delta": 0.25}),
        (general_products, ops.gemm_add, {}),
    ):
        p = make(dtype, "cpu", with_c=with_c)
        poison(*p.outs)
        function(p.a, p.b, p.c, p.outs, alpha=-1.5, beta=0.5, **delta)
        for i, out in enumerate(p.outs):
            expected = -1.5 * p.a[i].double() @ p.b[i].double()
            if with_c:
                expected += 0.5 * p.c[i].double()
            if delta:
                expected += 0.25 * torch.eye(out.shape[-1], dtype=torch.float64)
            assert_error_ratio(out, expected.to(dtype), expected, floor=EPSILON[dtype])


@pytest.mark.parametrize("rows", [511, 513, 1100])
def test_symmetric_product_in_halves(rows):
    """Large enough that the CPU computes one off-diagonal block and mirrors it."""
    x = torch.randn(2, rows, 40, dtype=torch.float64)
    c = torch.randn(2, rows, rows, dtype=torch.float64)
    c = c + c.mT
    out = torch.full((2, rows, rows), torch.nan, dtype=torch.float64)
    ops.symm_gemm([x], [x.mT], [c], [out], alpha=2.0, beta=-1.0, delta=3.0)
    torch.testing.assert_close(out, 2 * x @ x.mT - c + 3 * torch.eye(rows, dtype=torch.float64), rtol=1e-12, atol=1e-11)


def test_a_matrix_has_the_same_bits_alone_and_in_a_batch():
    a, b = torch.randn(5, 70, 70), torch.randn(5, 70, 33)
    together, alone = torch.empty(5, 70, 33), torch.empty(1, 70, 33)
    ops.gemm_add([a], [b], [], [together])
    for i in range(5):
        ops.gemm_add([a[i : i + 1]], [b[i : i + 1]], [], [alone])
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1, dtype=torch.float64), torch.tensor([0.1])])
@pytest.mark.parametrize("dtype", DTYPES)
def test_apply(dtype, lr):
    params = tensor_list(dtype, "cpu")
    updates = [torch.randn_like(p).bfloat16() for p in params]
    scales = [0.5 + i for i in range(len(params))]
    before = [p.to(torch.float64, copy=True) for p in params]
    ops.apply(params, updates, lr=lr, weight_decay=0.5, scales=scales)
    for param, old, update, scale in zip(params, before, updates, scales, strict=True):
        expected = old * (1 - 0.1 * 0.5) - 0.1 * scale * update.double()
        tolerance = max(EPSILON[dtype], 0 if isinstance(lr, float) else 1e-6)
        torch.testing.assert_close(param.double(), expected, rtol=tolerance, atol=tolerance)


def products_and_params(dtype, param_dtype):
    """Two entries of several matrices, and parameters in several memory orders."""
    a = [torch.randn(3, 8, 5).to(dtype), torch.randn(1, 4, 7).to(dtype)]
    b = [torch.randn(3, 5, 6).to(dtype), torch.randn(1, 7, 9).to(dtype)]
    params = [in_layout(torch.randn(8, 6).to(param_dtype), layout) for layout in LAYOUTS[:3]]
    return a, b, [*params, torch.randn(4, 9).to(param_dtype)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gemm_apply_is_gemm_add_and_apply(dtype):
    a, b, params = products_and_params(dtype, torch.float32)
    before = [p.clone() for p in params]
    scales = [0.5, 1.0, 1.5, 2.0]
    ops.gemm_apply(a, b, params, lr=0.1, weight_decay=0.2, scales=scales)
    products = [x for left, right in zip(a, b, strict=True) for x in (left.double() @ right.double())]
    for p, old, product, scale in zip(params, before, products, scales, strict=True):
        expected = old.double() * (1 - 0.1 * 0.2) - 0.1 * scale * product
        torch.testing.assert_close(p.double(), expected, rtol=EPSILON[dtype] + 1e-6, atol=EPSILON[dtype] + 1e-6)


def test_gemm_apply_found_inf_changes_nothing():
    a, b, params = products_and_params(torch.float32, torch.float32)
    before = [p.clone() for p in params]
    ops.gemm_apply(a, b, params, lr=0.1, scales=[1.0] * 4, found_inf=torch.tensor([1.0]))
    assert all(map(torch.equal, params, before))


def test_gemm_add_converts_its_results():
    a, b, _ = products_and_params(torch.float32, torch.float32)
    outs = [torch.full((3, 8, 6), torch.nan).bfloat16(), torch.full((1, 4, 9), torch.nan).bfloat16()]
    ops.gemm_add(a, b, [], outs)
    for left, right, out in zip(a, b, outs, strict=True):
        assert torch.equal(out, (left @ right).bfloat16())


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_squares(dtype, size):
    xs = [in_layout(torch.randn(2, 7, 5).to(dtype) * size, layout) for layout in LAYOUTS]
    sumsq = torch.full((8,), torch.nan, dtype=torch.float64)
    ops.sum_squares(xs, sumsq)
    expected = torch.cat([x.double().square().sum((1, 2)) for x in xs])
    torch.testing.assert_close(sumsq, expected, rtol=1e-12, atol=0)


def test_apply_found_inf_changes_nothing():
    params = tensor_list(torch.float32, "cpu")
    before = [p.clone() for p in params]
    updates = [torch.full_like(p, torch.nan) for p in params]
    ops.apply(params, updates, lr=1.0, weight_decay=0.1, scales=[1.0] * len(params), found_inf=torch.ones(1))
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))


def test_empty_lists_do_nothing():
    ops.prologue([], [], [], torch.empty(0, dtype=torch.float64), momentum=0.9)
    ops.normalize([], torch.empty(0, dtype=torch.float64), [], eps=0.0)
    ops.symm_gemm([], [], [], [])
    ops.gemm_add([], [], [], [])
    ops.apply([], [], lr=0.1, scales=[])


X, Y = torch.zeros(1, 2, 3), torch.zeros(1, 3, 2)
S = torch.zeros(1, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.gemm_add([X], [Y, Y], [], [X]), r"b must have as many entries as a, 1, got 2"),
        (lambda: ops.gemm_add([X[0]], [Y[0]], [], [X[0]]), r"a\[0\] must be \[batch, rows, cols\], got \[2, 3\]"),
        (lambda: ops.gemm_add([X], [X], [], [X]), r"b\[0\] must be \[1, 3, n\] to follow a\[0\], got \[1, 2, 3\]"),
        (lambda: ops.gemm_add([X], [Y], [], [X]), r"outs\[0\] must be \[1, 2, 2\], got \[1, 2, 3\]"),
        (lambda: ops.gemm_add([X], [Y], [Y], [X @ Y]), r"c\[0\] must have the shape of outs\[0\], \[1, 2, 2\], got"),
        (lambda: ops.symm_gemm([X], [X.mT @ X], [], [X]), r"outs\[0\] must hold square matrices, got \[1, 2, 3\]"),
        (lambda: ops.gemm_add([X.int()], [Y], [], [X @ Y]), r"a must have one real floating dtype, got torch.int32"),
        (
            lambda: ops.gemm_add([X, X.half()], [Y] * 2, [], [X @ Y] * 2),
            r"a must have one .*, got torch.float16, torch.float32",
        ),
        (lambda: ops.gemm_add([X], [Y.to("meta")], [], [X @ Y]), r"b must be on cpu like a\[0\], got meta"),
        (lambda: ops.prologue([X], [Y], [X], S, momentum=0.9), r"momenta\[0\] must have the shape of grads\[0\]"),
        (
            lambda: ops.prologue([X], [X], [X], S.float(), momentum=0.9),
            r"sumsq must be float64 \[1\], got torch.float32",
        ),
        (lambda: ops.prologue([X], [X], [X], S, momentum=1.0), r"momentum must be in \[0, 1\), got 1.0"),
        (lambda: ops.prologue([X], [X], [X], S, momentum=0.9, grad_scale=X), r"grad_scale must have one element"),
        (lambda: ops.prologue([X], [X], [X], S, momentum=0.9, found_inf=X), r"found_inf must have one element"),
        (lambda: ops.sum_squares([X], S[:0]), r"sumsq must be float64 \[1\], got torch.float64 \[0\]"),
        (lambda: ops.gemm_apply([X], [Y], [X[0], X[0]], lr=0.1, scales=[1.0, 1.0]), r"params must have one entry for"),
        (lambda: ops.gemm_apply([X], [Y], [X[0, :1]], lr=0.1, scales=[1.0]), r"params\[0\] must be"),
        (lambda: ops.gemm_apply([X], [Y], [X[0, :, :2]], lr=0.1, scales=[]), r"scales must have 1 entries, got 0"),
        (lambda: ops.normalize([X], S[:0], [X], eps=0.0), r"sumsq must be float64 \[1\], got torch.float64 \[0\]"),
        (lambda: ops.apply([X], [X], lr=0.1, scales=[]), r"scales must have 1 entries, got 0"),
        (lambda: ops.apply([X], [X], lr=X, scales=[1.0]), r"lr must have one element, got shape \[1, 2, 3\]"),
        (lambda: ops.apply([X], [Y], lr=0.1, scales=[1.0]), r"updates\[0\] must have the shape of params\[0\]"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
    assert not X.any() and not Y.any() and not S.any()
