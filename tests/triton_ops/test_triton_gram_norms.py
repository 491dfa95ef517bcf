"""What divides by the Schatten-4 norm in Triton: norms of Gram matrices, and products with powers of their gains."""

from itertools import product

import pytest
import torch
from triton_cases import DEVICE, FLOOR, INTERPRETED, MARKS, PRODUCT_DTYPES, WIDE, WIDE_DESCRIBED, in_rows_of_16

from muon_kernels.backends import products
from muon_kernels.program import NORM_ROWS
from muon_kernels.testing import assert_error_ratio

pytest.importorskip("triton")

import triton.language as tl

from muon_kernels.backends.triton import gemm, gram_norms, symm_gemm
from muon_kernels.backends.triton.launch import run

pytestmark = MARKS

SIDES = [1, 9, 31, 32, 33, 64, 100, 48, 70, 130]
"""More than a launch takes, of one part and of several, of whole and of partial ones."""


def grams_of(sides, dtype, columns=20):
    xs = [torch.randn(1 + i % 3, side, columns, device=DEVICE) / columns**0.5 for i, side in enumerate(sides)]
    return [(x @ x.mT).to(dtype) for x in xs]


def nothing_yet(grams):
    return [g.new_full((len(g), 2, -(-g.shape[1] // NORM_ROWS)), torch.nan) for g in grams]


def norms_of(grams):
    outs = nothing_yet(grams)
    run(gram_norms.plan(grams, outs), outs[0].device)
    return outs


def by_reference(grams):
    outs = nothing_yet(grams)
    products.gram_norms(grams, outs)
    return outs


@pytest.mark.parametrize("dtype", PRODUCT_DTYPES, ids=str)
def test_norms(dtype):
    """Beside the reference, also of more columns than are read at a time, and of other memory orders."""
    grams = grams_of([*SIDES, gram_norms.COLS + 20], dtype)
    grams += [in_rows_of_16(grams[4]), grams[6].mT]
    for actual, plain, expected in zip(
        norms_of(grams), by_reference(grams), by_reference([g.double() for g in grams]), strict=True
    ):
        for row in range(2):
            assert_error_ratio(actual[:, row], plain[:, row], expected[:, row], floor=FLOOR[dtype])


@pytest.mark.parametrize("dtype", PRODUCT_DTYPES, ids=str)
def test_norms_of_a_matrix_are_the_same_in_company(dtype):
    grams = grams_of(SIDES, dtype)
    for gram, together in zip(grams, norms_of(grams), strict=True):
        for i, one in enumerate(gram):
            assert torch.equal(norms_of([one[None]])[0][0], together[i])


def test_what_is_not_finite_stays_where_it_is():
    grams = grams_of([33, 70], torch.float16)
    expected = norms_of(grams)
    grams[1][1, 40, 3] = torch.nan
    actual = norms_of(grams)
    assert actual[1][1, 0, 1].isnan()
    expected[1][1, 0, 1] = actual[1][1, 0, 1] = 0.0
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


def gained(grams, norms, powers, with_c):
    """2 A^2 - 0.5 A + 3 I of symmetric A, the factors multiplied by powers of gains."""
    outs = [torch.full_like(g, torch.nan) for g in grams]
    options = {"alpha": 2.0, "beta": -0.5, "delta": 3.0, "norms": norms, "powers": powers}
    run(symm_gemm.plan(grams, grams, grams if with_c else [], outs, **options), outs[0].device)
    return outs


def in_float64(grams, norms, powers, with_c):
    for gram, own in zip(grams, norms, strict=True):
        p, q, r = (products.gain(own.double()).pow(power)[:, None, None] for power in powers)
        one = torch.eye(gram.shape[1], dtype=torch.float64, device=gram.device)
        a = gram.double()
        yield 2 * p * a @ a - (0.5 * q * a if with_c else 0) + 3 * r * one


@pytest.fixture(params=[WIDE, WIDE_DESCRIBED], ids=["pointers", "descriptors"])
def few_norms_at_a_time(request, monkeypatch):
    """Tiles wider than high; in the interpreter as few norms are read at a time as matrices of its size have."""
    monkeypatch.setattr(gemm, "_config", lambda *args: request.param)
    if INTERPRETED:
        monkeypatch.setattr(symm_gemm, "_NORMS", tl.constexpr(2))


@pytest.mark.usefixtures("few_norms_at_a_time")
@pytest.mark.parametrize(
    ("dtype", "with_c", "powers"),
    list(zip(PRODUCT_DTYPES, [True, False], [(4, 2, 0), (1, 3, 1)], strict=True))
    if INTERPRETED
    else list(product(PRODUCT_DTYPES, [True, False], [(4, 2, 0), (1, 3, 1)])),
)
def test_products_with_gains(dtype, with_c, powers):
    """A zero matrix has gain 0, whatever it is multiplied with; NaN is no gain; and other matrices do not see it."""
    grams = [in_rows_of_16(g) for g in grams_of([33, 70, 9] if INTERPRETED else [33, 70, 9, 1000, 4200], dtype)]
    norms = by_reference(grams)
    norms[1][0] = 0.0
    norms[2][1, 0, 0] = torch.nan
    outs = gained(grams, norms, powers, with_c)
    assert (outs[1][0] == (0 if all(powers) else 3 * torch.eye(70, device=DEVICE))).all()
    for actual, expected in zip(outs, in_float64(grams, norms, powers, with_c), strict=True):
        assert torch.equal(actual.isnan(), expected.isnan())
        assert torch.equal(actual.nan_to_num(), actual.mT.nan_to_num())
        finite = expected.isfinite().all((1, 2))
        assert_error_ratio(actual[finite], expected[finite].to(dtype), expected[finite], floor=2 * FLOOR[dtype])
    assert outs[2][1].isnan().all()


@pytest.mark.usefixtures("few_norms_at_a_time")
def test_products_with_gains_are_the_same_in_company():
    grams = [in_rows_of_16(g) for g in grams_of([33, 70, 9], torch.float16)]
    norms = by_reference(grams)
    outs = gained(grams, norms, (4, 2, 1), True)
    for gram, own, together in zip(grams, norms, outs, strict=True):
        for i in range(len(gram)):
            (alone,) = gained([gram[i : i + 1]], [own[i : i + 1]], (4, 2, 1), True)
            assert torch.equal(alone[0], together[i])
