"""symm_gemm and gemm_add in Triton."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from cases import Products, general_products, symmetric_products
from triton_cases import (
    DEVICE,
    DTYPES,
    FLOOR,
    INTERPRETED,
    LONG_STEP,
    MARKS,
    PRODUCT_DTYPES,
    SQUARE,
    SQUARE_DESCRIBED,
    WIDE,
    WIDE_DESCRIBED,
    in_rows_of_16,
)

from muon_kernels import ops, use_backend
from muon_kernels.testing import assert_error_ratio, poison

pytest.importorskip("triton")

from muon_kernels.backends.configs import GemmConfig
from muon_kernels.backends.triton import gemm, gemm_add, symm_gemm

pytestmark = MARKS

PRODUCTS = (
    list(zip(DTYPES, [True, False], strict=True)) if INTERPRETED else list(product(PRODUCT_DTYPES, [True, False]))
)
"""(dtype, with C). To the interpreter all dtypes are the same lines: each once, with C or without."""
CONFIGS = [None, WIDE] if INTERPRETED else [None, WIDE, SQUARE, LONG_STEP]


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


def test_gemm_add_with_a_result_in_32_bit(monkeypatch):
    """Which is stored piece by piece, and not rounded to 16 bit on the way."""
    monkeypatch.setattr(gemm, "_config", lambda *args: GemmConfig(64, 256, 32, warps=8, stages=2, group=2))
    x, y = torch.randn(2, 70, 64, device=DEVICE).half(), torch.randn(2, 64, 400, device=DEVICE).half()
    out = torch.full((2, 70, 400), torch.nan, device=DEVICE)
    ops.gemm_add([x], [y], [], [out], alpha=0.5)
    torch.testing.assert_close(out.double(), 0.5 * x.double() @ y.double(), atol=1e-5, rtol=1e-5)


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


def test_entries_that_look_alike_share_a_launch(monkeypatch):
    monkeypatch.setattr(gemm, "_config", lambda *args: SQUARE)
    xs = [torch.empty(s, dtype=torch.float16, device=DEVICE) for s in ((48, 64, 64), (12, 128, 64), (12, 64, 128))]
    xs.append(torch.empty(12, 64, 128, dtype=torch.float16, device=DEVICE).mT)
    outs = [torch.empty(*x.shape[:2], x.shape[1], dtype=torch.float16, device=DEVICE) for x in xs]
    launches = gemm_add.plan(xs, [x.mT for x in xs], [], outs, alpha=1.0, beta=0.0)
    assert [launch.arguments["ENTRIES"] for launch in launches] == [3, 1]
