"""method="squaring": the chain against its polynomial in float64, its accuracy beside plain chains, and what it refuses."""

import math

import pytest
import torch

from muon_kernels import Muon, orthogonalize
from muon_kernels.compat import to_torch
from muon_kernels.ops import chains
from muon_kernels.orthogonalize import scratch_bytes
from muon_kernels.program import BUFFER_FIELDS, PRODUCT_FIELDS, ProgramBuilder, rows_of, view
from muon_kernels.squaring import squaring_chain, squaring_map
from muon_kernels.testing import SPECTRA, matrix_with_spectrum

BAND, SLOPE = 0.1595, 683.5
SHAPES = [(48, 48), (32, 96), (96, 32), (33, 71), (71, 40)]


def oracle(g):
    """The polynomial applied to the singular values of a matrix divided by its Frobenius norm, and the polar factor."""
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    return (u * squaring_map(s / s.norm())) @ vh


def polar_error(out, g):
    """sqrt(2 - 2 cos) of the result and U V^T, which is how far apart they are at equal norm."""
    u, _, vh = torch.linalg.svd(g, full_matrices=False)
    out, polar = out.double(), u @ vh
    return (out / out.norm() - polar / polar.norm()).norm()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_the_polynomial(dtype, shape):
    for name, spectrum in SPECTRA.items():
        g = matrix_with_spectrum(*shape, spectrum(min(shape)))
        expected = oracle(g)
        actual = orthogonalize(g, method="squaring", compute_dtype=dtype)
        tolerance = 1e-10 if dtype == torch.float64 else 1e-3
        assert (actual - expected).norm() <= tolerance * expected.norm(), name


@pytest.mark.parametrize("first_shifted", [2, 3])
@pytest.mark.parametrize("shape", [(40, 40), (24, 40), (24, 61)])
def test_shifts_are_exact(shape, first_shifted):
    """float16's form and the others', both in float64, on poisoned scratch memory."""
    build = ProgramBuilder(element_size=8)
    build.chain(2)
    x, spare = build.buffer(*shape), build.buffer(*shape)
    result = squaring_chain(build, x, spare, first_shifted=first_shifted)
    workspace = torch.full((build.elements,), torch.nan, dtype=torch.float64)
    buffers = rows_of(build.buffers, BUFFER_FIELDS)
    g = torch.randn(2, *shape, dtype=torch.float64)
    view(workspace, buffers[x.buffer]).copy_(g / g.norm(dim=(1, 2), keepdim=True))
    chains(workspace, build.build())
    for actual, matrix in zip(view(workspace, buffers[result.buffer]), g, strict=True):
        expected = oracle(matrix)
        assert (actual - expected).norm() <= 1e-10 * expected.norm()


def test_band_and_slope():
    x = torch.logspace(math.log10(0.0014), 0, 100_000, dtype=torch.float64)
    assert (squaring_map(x) - 1).abs().max() < BAND
    assert squaring_map(1e-9) / 1e-9 == pytest.approx(SLOPE, rel=1e-3)
    assert squaring_map(0.0) == 0.0


def test_products_and_scratch():
    """13 products, at most one added matrix each; a square matrix takes four times itself."""
    build = ProgramBuilder(element_size=2)
    build.chain(1)
    squaring_chain(build, build.buffer(64, 64), build.buffer(64, 64), first_shifted=2)
    products = rows_of(build.build().products, PRODUCT_FIELDS)
    assert [symmetric for symmetric, *_ in products] == [1] * 6 + [0] + [1] * 5 + [0]
    assert sum(c >= 0 for _, _, _, c, _ in products) == 4
    assert all(out // 2 not in (a // 2, b // 2, c // 2) for _, a, b, c, out in products)
    half = {"method": "squaring", "compute_dtype": torch.float16}
    assert scratch_bytes(64, 64, (), **half) == 4 * 2 * 64 * 64
    assert scratch_bytes(128, 64, (), **half) == 2 * 2 * 128 * 64 + 2 * 64 * 64


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
