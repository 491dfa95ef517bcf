"""Chains in Triton."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from cases import product_by_product
from triton_cases import DEVICE, INTERPRETED, MARKS, PRODUCT_DTYPES, WIDE

from muon_kernels import ops, use_backend
from muon_kernels.coefficients import resolve_coefficients
from muon_kernels.orthogonalize import Orthogonalizer
from muon_kernels.program import BUFFER_FIELDS, ProgramBuilder, rows_of, view
from muon_kernels.testing import assert_error_ratio, poison

pytest.importorskip("triton")

from muon_kernels.backends.triton import chains, gemm, gemm_add, replay, symm_gemm

pytestmark = MARKS

CONFIG = replace(WIDE, block_n=16) if INTERPRETED else WIDE
"""The interpreter takes long over tiles that lie outside the matrix, as most wide ones of these products would."""


@pytest.mark.parametrize("method", ["standard", "gram"])
def test_chains_have_the_bits_of_product_after_product(method, monkeypatch):
    """Twice, so that the plan that was kept is bound to another workspace."""
    monkeypatch.setattr(gemm, "_config", lambda *args: CONFIG)
    monkeypatch.setattr(gemm, "NARROW", CONFIG)
    groups = [(2, 16, 24), (1, 24, 16), (1, 9, 5)]
    rows = resolve_coefficients("original", 3)
    xs = [torch.randn(*group, device=DEVICE) for group in groups]
    expected = None
    by_products = partial(product_by_product, symm_gemm.symm_gemm, gemm_add.gemm_add)
    for op in (by_products, ops.chains, ops.chains):
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


SQUARED = [(3, 24, 40), (1, 70, 40), (2, 5, 9), (1, 33, 33)]
"""Of Gram matrices with one part of norms and with two, whole and partial ones."""


def squared(xs, dtype, backend="triton"):
    """Matrices orthogonalised by squaring, on scratch memory that holds NaN."""
    options = {"method": "squaring", "compute_dtype": dtype, "device": torch.device(DEVICE)}
    chain = Orthogonalizer([x.shape for x in xs], resolve_coefficients("original", 5), **options)
    poison(chain.workspace)
    with use_backend(backend):
        return chain.run(xs, None)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(gemm, "_config", lambda *args: CONFIG)
    monkeypatch.setattr(gemm, "NARROW", CONFIG)
    monkeypatch.setattr(chains, "_plans", {})


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", PRODUCT_DTYPES, ids=str)
def test_squaring(dtype):
    """Beside the reference, with little rank and with all of it.

    Above the floor at most 0.95 (float16) and 1.4 (float32) of its error in four draws in the interpreter; in another
    list of shapes a matrix came to 3.6 in float32.
    """
    xs = [torch.randn(*group, device=DEVICE).to(dtype) for group in SQUARED]
    xs[0][1] = xs[0][1, :, :1] * xs[0][1, :1]
    plain, expected = (squared(xs, each, "reference") for each in (dtype, torch.float64))
    for results in zip(squared(xs, dtype), plain, expected, strict=True):
        for actual, one, oracle in zip(*results, strict=True):
            assert_error_ratio(actual, one, oracle, floor=4 * torch.finfo(dtype).eps)


@pytest.mark.usefixtures("small_tiles")
def test_squaring_alone_and_in_company():
    """The same bits, also beside a matrix that is NaN, and one that is zero."""
    xs = [torch.randn(*group, device=DEVICE).half() for group in SQUARED]
    xs[0][1] = torch.nan
    xs[2][0] = 0
    outs = squared(xs, torch.float16)
    assert outs[0][1].isnan().all() and (outs[2][0] == 0).all()
    for group, x in enumerate(xs):
        for i in [0, 2] if group == 0 else range(len(x)):
            (alone,) = squared([x[i : i + 1]], torch.float16)
            assert alone.isfinite().all() and torch.equal(alone[0], outs[group][i])


@pytest.mark.usefixtures("small_tiles")
def test_products_that_differ_in_their_powers_alone():
    """Or in whether they have norms, in one link of chains: each has its own."""
    build = ProgramBuilder(element_size=2)
    results = []
    for powers in ((4, 2, 0), (1, 1, 1), None, (4, 2, 0)):
        build.chain(2)
        gram, out = build.buffer(40, 40), build.buffer(40, 40)
        norms = build.gram_norms(gram)
        options = {"norms": norms, "powers": powers} if powers else {}
        build.symm_gemm(gram, gram, out, alpha=0.5, c=gram, beta=2.0, delta=1.0, **options)
        results.append((len(build.buffers) // BUFFER_FIELDS - 3, len(build.buffers) // BUFFER_FIELDS - 2))
    program = build.build()
    spaces = [torch.full((program.elements,), torch.nan, dtype=torch.float16, device=DEVICE) for _ in range(2)]
    buffers = rows_of(program.buffers, BUFFER_FIELDS)
    for gram, _ in results:
        x = torch.randn(2, 40, 50, device=DEVICE) / 40
        for space in spaces:
            view(space, buffers[gram]).copy_(x @ x.mT)
    for space, backend in zip(spaces, ("triton", "reference"), strict=True):
        with use_backend(backend):
            ops.chains(space, program)
    for _, out in results:
        torch.testing.assert_close(*(view(space, buffers[out]) for space in spaces), rtol=4e-3, atol=4e-3)


def test_chains_advance_in_step(monkeypatch):
    """Wide and tall matrices of one Gram size share all launches but those that X is an operand of."""
    launched = []
    monkeypatch.setattr(replay, "run", lambda launches, *rest: launched.extend(launches))
    groups = [(12, 64, 256), (12, 256, 64)]
    rows = resolve_coefficients("original", 5)
    options = {"method": "gram", "compute_dtype": torch.float16, "device": torch.device(DEVICE)}
    chain = Orthogonalizer(groups, rows, factored=True, **options)
    ops.chains(chain.workspace, chain.plan.program)
    assert sorted(launch.arguments["ENTRIES"] for launch in launched) == [1] * 6 + [2] * 14
