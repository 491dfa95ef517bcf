"""The chains against the same polynomial in float64, over a zoo of spectra, and against plain torch's accuracy."""

import kernel_chains
import pytest
import torch

from muon_kernels import orthogonalize
from muon_kernels.chain import standard_chain
from muon_kernels.coefficients import PRESETS, resolve_coefficients
from muon_kernels.ops import chains
from muon_kernels.program import BUFFER_FIELDS, ProgramBuilder, rows_of, view
from muon_kernels.testing import SPECTRA, assert_error_ratio, matrix_with_spectrum, polynomial_oracle

SHAPES = [(48, 48), (32, 96), (96, 32), (33, 71)]


def steps_of(preset):
    return 10 if preset == "deepseek_v4" else 5


@pytest.mark.parametrize("method", ["standard", "gram"])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", SHAPES)
def test_float64_is_the_polynomial(shape, preset, method):
    for spectrum in SPECTRA.values():
        g = matrix_with_spectrum(*shape, spectrum(min(shape)))
        steps = steps_of(preset)
        expected = polynomial_oracle(g, resolve_coefficients(preset, steps))
        actual = orthogonalize(g, method=method, ns_coefficients=preset, ns_steps=steps, compute_dtype=torch.float64)
        assert (actual - expected).norm() <= 1e-8 * expected.norm()


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 7])
@pytest.mark.parametrize("method", ["standard", "gram"])
def test_any_number_of_steps(method, steps):
    g = torch.randn(20, 50, dtype=torch.float64)
    expected = polynomial_oracle(g, resolve_coefficients("quintic", steps))
    actual = orthogonalize(g, method=method, ns_coefficients="quintic", ns_steps=steps, compute_dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def plain_chain(g, rows, dtype):
    """The textbook chain in plain torch, every result rounded to `dtype`."""
    x = (g / g.norm()).to(dtype)
    x = x.mT if x.shape[0] > x.shape[1] else x
    for a, b, c in rows:
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if g.shape[0] > g.shape[1] else x


# The Gram chain rounds R, which the standard chain forms anew at each step. Its error in float32, in units of the plain
# chain's on the same input, is at most 9.0 on these shapes and 8.3 at 256 x 1024; in bfloat16 2.6 at 256 x 1024 (worst
# of three draws of every spectrum).
GRAM_FACTOR = 10.0
ACCURACY_PRESETS = ["original", "quintic", "polar_express_1.05"]


@pytest.mark.parametrize("preset", ACCURACY_PRESETS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_standard_chain_is_as_accurate_as_plain_torch(dtype, shape, preset):
    rows = resolve_coefficients(preset, 5)
    for spectrum in SPECTRA.values():
        g = matrix_with_spectrum(*shape, spectrum(min(shape)))
        actual = orthogonalize(g, method="standard", ns_coefficients=preset, compute_dtype=dtype)
        # The floor is one rounding of the result: on flat spectra the plain chain can err by less.
        floor = 4 * torch.finfo(dtype).eps
        assert_error_ratio(actual, plain_chain(g, rows, dtype), polynomial_oracle(g, rows), floor=floor)


@pytest.mark.parametrize("preset", ACCURACY_PRESETS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gram_chain_in_float32(shape, preset):
    rows = resolve_coefficients(preset, 5)
    for spectrum in SPECTRA.values():
        g = matrix_with_spectrum(*shape, spectrum(min(shape)))
        actual = orthogonalize(g, method="gram", ns_coefficients=preset, compute_dtype=torch.float32)
        assert_error_ratio(
            actual,
            plain_chain(g, rows, torch.float32),
            polynomial_oracle(g, rows),
            factor=GRAM_FACTOR,
            floor=1e-5,
        )


@pytest.mark.parametrize("preset", ACCURACY_PRESETS)
def test_gram_chain_in_float16_beats_the_standard_chain_in_bfloat16(preset):
    """Why float16 is the default where products are fast: 3 more mantissa bits outweigh what the Gram form loses."""
    rows = resolve_coefficients(preset, 5)
    for spectrum in SPECTRA.values():
        g = matrix_with_spectrum(32, 96, spectrum(32))
        oracle = polynomial_oracle(g, rows)
        half = orthogonalize(g, method="gram", ns_coefficients=preset, compute_dtype=torch.float16)
        plain = plain_chain(g, rows, torch.bfloat16)
        assert_error_ratio(half, plain, oracle, factor=1.0, floor=2e-2)


BANDS = {"original": (0.68, 1.13), "quintic": (0.98, 1.03), "polar_express_1.05": (0.85, 1.12), "cubic5": (0.77, 1.30)}


@pytest.mark.parametrize("method", ["standard", "gram"])
@pytest.mark.parametrize("preset", BANDS)
def test_output_band(preset, method):
    """Normalised singular values from 0.01 up end in the preset's band."""
    sigma = torch.logspace(0, -1.2, 64, dtype=torch.float64)
    assert (sigma / sigma.norm()).min() >= 0.01
    g = matrix_with_spectrum(64, 128, sigma)
    out = orthogonalize(g, method=method, ns_coefficients=preset, compute_dtype=torch.float32)
    values = torch.linalg.svdvals(out)
    low, high = BANDS[preset]
    assert low - 5e-3 <= values.min() and values.max() <= high + 5e-3


@pytest.mark.parametrize("method", ["standard", "gram"])
def test_the_largest_singular_value_stays_bounded_in_16_bit(method):
    """A Gram chain without its restart diverges on these spectra."""
    for spectrum in SPECTRA.values():
        g = matrix_with_spectrum(64, 256, spectrum(64))
        out = orthogonalize(g, method=method, ns_coefficients="polar_express_1.05", compute_dtype=torch.float16)
        assert torch.linalg.svdvals(out).max() < 1.25


ROWS = {name: resolve_coefficients(name, steps_of(name)) for name in PRESETS}
ROWS |= {f"c = {c}": ((1.5, -0.5, c),) * 3 for c in (1e-9, 1e-3, 0.0)}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("side", [40, 24])
def test_the_whole_factor_is_the_polynomial_too(side, rows):
    """The form that float16 takes, in float64, where a completed square must not cost digits if c is small."""
    build = ProgramBuilder(element_size=8)
    build.chain(2)
    x, spare = build.buffer(side, 40), build.buffer(side, 40)
    factor, last_x, result = standard_chain(build, x, spare, rows, whole_factor=True)
    build.gemm_add(factor, last_x, result)
    program = build.build()
    workspace = torch.full((program.elements,), torch.nan, dtype=torch.float64)
    buffers = rows_of(build.buffers, BUFFER_FIELDS)
    g = torch.randn(2, side, 40, dtype=torch.float64)
    view(workspace, buffers[x.buffer]).copy_(g / g.norm(dim=(1, 2), keepdim=True))
    chains(workspace, program)
    for actual, matrix in zip(view(workspace, buffers[result.buffer]), g, strict=True):
        expected = polynomial_oracle(matrix, rows)
        assert (actual - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize(("groups", "method", "dtype"), kernel_chains.CASES[6:12])
def test_what_sanitizers_run(groups, method, dtype):
    """The small groups of tests/kernel_chains.py, on the reference."""
    assert kernel_chains.run(groups, method, dtype, "cpu", "reference") < kernel_chains.TOLERANCES[dtype]
