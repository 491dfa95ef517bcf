"""method="squaring": against its polynomial in float64, in 16 bit beside plain chains, and what it refuses."""

import math

import pytest
import torch

from muon_kernels import Muon, orthogonalize
from muon_kernels.compat import to_torch
from muon_kernels.ops import chains
from muon_kernels.orthogonalize import scratch_bytes
from muon_kernels.program import BUFFER_FIELDS, COUNTER_SIZE, PRODUCT_FIELDS, ProgramBuilder, rows_of, view
from muon_kernels.squaring import STAGES, squaring_chain, squaring_map
from muon_kernels.testing import SPECTRA, assert_error_ratio, matrix_with_spectrum

BAND, SLOPE = 0.1435, 827.1
SHAPES = [(48, 48), (32, 96), (96, 32), (33, 71), (71, 40)]


def oracle(g):
    """The polynomial applied to the singular values of a matrix divided by its Frobenius norm, and the polar factor."""
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    return (u * squaring_map(s / s.norm())) @ vh


def plain_chain(g, dtype):
    """The textbook form in plain torch: every term added, every result rounded to `dtype`."""
    x = (g / g.norm()).to(dtype)
    x = x.mT if x.shape[0] > x.shape[1] else x
    for stage in STAGES:
        ms = [stage.gram * (x @ x.mT)]
        for alpha, beta in stage.squares:
            ms.append(torch.addmm(ms[-1], ms[-1], ms[-1], beta=beta, alpha=alpha))
        x = torch.addmm(x, ms[-1] + stage.gamma * ms[1], x, beta=stage.delta)
    return x.mT if g.shape[0] > g.shape[1] else x


def polar_distance(out, g):
    """How far the result is from U V^T, both scaled to norm 1; null directions do not count."""
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    polar = (u * (s > 1e-9 * s[0])) @ vh
    return (out.double() / out.double().norm() - polar / polar.norm()).norm()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_the_polynomial(dtype, shape):
    for name, spectrum in SPECTRA.items():
        g = matrix_with_spectrum(*shape, spectrum(min(shape)))
        expected = oracle(g)
        actual = orthogonalize(g, method="squaring", compute_dtype=dtype)
        tolerance = 1e-10 if dtype == torch.float64 else 1e-3
        assert (actual - expected).norm() <= tolerance * expected.norm(), name


# Rounding a shift moves all eigenvalues together, and that shows where many are equal. In units of the textbook form's
# error, over five draws of the zoo up to 256 x 256: at most 4.2 in float16 and 2.9 in bfloat16 (6.3 and 9.0 on flat
# spectra, where the floor of four roundings covers it), 1.7 in float32.
@pytest.mark.parametrize("shape", [(48, 48), (32, 96), (96, 32), (64, 72)])
@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 2.0), (torch.float16, 5.0), (torch.bfloat16, 4.0)])
def test_rounding(dtype, factor, shape):
    for spectrum in SPECTRA.values():
        g = matrix_with_spectrum(*shape, spectrum(min(shape)))
        actual = orthogonalize(g, method="squaring", compute_dtype=dtype)
        floor = 4 * torch.finfo(dtype).eps
        assert_error_ratio(actual, plain_chain(g, dtype), oracle(g), factor=factor, floor=floor)


@pytest.mark.parametrize("shape", [(48, 48), (32, 96), (96, 32), (128, 128)])
def test_nearer_to_the_polar_factor_than_the_original_coefficients(shape):
    """In float16, beside those in bfloat16: at most 0.96 of their distance over five draws of the zoo."""
    for name, spectrum in SPECTRA.items():
        g = matrix_with_spectrum(*shape, spectrum(min(shape)))
        ours = orthogonalize(g, method="squaring", compute_dtype=torch.float16)
        original = orthogonalize(g, method="standard", compute_dtype=torch.bfloat16)
        assert polar_distance(ours, g) < polar_distance(original, g), name
        assert torch.linalg.svdvals(ours).max() < 1.2, name


@pytest.mark.parametrize("shape", [(40, 40), (24, 40), (24, 61)])
def test_scratch_memory_is_written_before_it_is_read(shape):
    """A batch on poisoned scratch memory."""
    build = ProgramBuilder(element_size=8)
    build.chain(2)
    x, spare = build.buffer(*shape), build.buffer(*shape)
    factor, last_x, result = squaring_chain(build, x, spare)
    build.gemm_add(factor, last_x, result)
    program = build.build()
    workspace = torch.full((program.elements,), torch.nan, dtype=torch.float64)
    buffers = rows_of(build.buffers, BUFFER_FIELDS)
    g = torch.randn(2, *shape, dtype=torch.float64)
    view(workspace, buffers[x.buffer]).copy_(g / g.norm(dim=(1, 2), keepdim=True))
    chains(workspace, program)
    for actual, matrix in zip(view(workspace, buffers[result.buffer]), g, strict=True):
        expected = oracle(matrix)
        assert (actual - expected).norm() <= 1e-10 * expected.norm()


def test_band_and_slope():
    x = torch.logspace(math.log10(0.0012), 0, 100_000, dtype=torch.float64)
    assert (squaring_map(x) - 1).abs().max() < BAND
    assert squaring_map(1e-9) / 1e-9 == pytest.approx(SLOPE, rel=1e-3)
    assert squaring_map(0.0) == 0.0


def test_products_and_scratch():
    """14 products, at most one added matrix each; a square matrix takes four times itself, and a counter a product."""
    build = ProgramBuilder(element_size=2)
    build.chain(1)
    build.gemm_add(*squaring_chain(build, build.buffer(64, 64), build.buffer(64, 64)))
    products = rows_of(build.build().products, PRODUCT_FIELDS)
    assert [symmetric for symmetric, *_ in products] == ([1] * 6 + [0]) * 2
    assert sum(c >= 0 for _, _, _, c, _ in products) == 5
    assert all(out // 2 not in (a // 2, b // 2, c // 2) for _, a, b, c, out in products)
    half = {"method": "squaring", "compute_dtype": torch.float16}
    counters = 14 * COUNTER_SIZE
    assert scratch_bytes(64, 64, (), **half) == 4 * 2 * 64 * 64 + counters
    assert scratch_bytes(128, 64, (), **half) == 2 * 2 * 128 * 64 + 2 * 64 * 64 + counters


@pytest.mark.parametrize(
    "options", [{"ns_coefficients": "original"}, {"ns_coefficients": [(2.0, -1.5, 0.5)]}, {"ns_steps": 6}]
)
def test_other_coefficients_are_refused(options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"'squaring' has coefficients of its own: {name} must be left at"):
        orthogonalize(torch.ones(2, 2), method="squaring", **options)
    p = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match=f"'squaring' has coefficients of its own: {name} must be left at"):
        Muon([p], method="squaring", **options)
    optimizer = Muon([p], method="squaring")
    optimizer.param_groups[0].update(options)
    p.grad = torch.randn(2, 2)
    with pytest.raises(ValueError, match="'squaring' has coefficients of its own"):
        optimizer.step()
    assert torch.equal(p, torch.ones(2, 2))


def test_muon_steps_with_it():
    shapes = [(24, 40), (40, 24), (16, 16), (24, 40)]
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.randn_like(p)
    options = {"method": "squaring", "compute_dtype": torch.float32}
    Muon(params, lr=0.1, weight_decay=0.0, nesterov=False, adjust_lr_fn="constant", **options).step()
    for p, old in zip(params, before, strict=True):
        torch.testing.assert_close(p.detach(), old - 0.1 * orthogonalize(p.grad, **options), rtol=0, atol=1e-5)


def test_to_torch_refuses_it():
    with pytest.raises(ValueError, match="torch.optim.Muon needs method to be a Newton-Schulz chain, got 'squaring'"):
        to_torch(Muon([torch.nn.Parameter(torch.ones(2, 2))], method="squaring").state_dict())
