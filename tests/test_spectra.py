"""Spectra against known singular values, exactly and by products, over hostile spectra and shapes."""

import math

import pytest
import torch
from torch import Tensor

from muon_kernels.diagnostics import Spectrum, condition_number, singular_values, spectra, spectral_norm
from muon_kernels.diagnostics.spectrum import LEAF
from muon_kernels.testing import SPECTRA, matrix_with_spectrum

SHAPES = ((24, 40), (40, 24), (24, 24), (1, 7), (7, 1))
METHODS = ("svd", "gram")


def expected(sigma: Tensor) -> Spectrum:
    squares = sigma.double().square()
    return Spectrum(
        sigma.max().item(),
        squares.sum().sqrt().item(),
        (squares.sum() / squares.max()).item(),
        (sigma.max() / sigma.min()).item(),
        (squares / squares.mean() - 1).square().mean().sqrt().item(),
    )


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize(("method", "leaf"), [("svd", LEAF), ("gram", LEAF), ("gram", 5)])
@pytest.mark.parametrize("name", SPECTRA)
def test_known_spectra(name: str, method: str, leaf: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muon_kernels.diagnostics.spectrum.LEAF", leaf)
    sigmas = [scale * SPECTRA[name](min(shape)).double() for shape in SHAPES]
    found = spectra([matrix_with_spectrum(*shape, s) for shape, s in zip(SHAPES, sigmas, strict=True)], method)
    for actual, sigma in zip(found, sigmas, strict=True):
        wanted = expected(sigma)
        bound = len(sigma) ** (1 / 1024) - 1 if method == "gram" else 0.0
        assert wanted.spectral_norm * (1 - bound - 1e-9) <= actual.spectral_norm <= wanted.spectral_norm * (1 + 1e-9)
        assert actual.frobenius_norm == pytest.approx(wanted.frobenius_norm, rel=1e-9)
        assert actual.stable_rank == pytest.approx(wanted.stable_rank, rel=1e-9 + 3 * bound)
        assert actual.orthogonality_error == pytest.approx(wanted.orthogonality_error, rel=1e-9, abs=1e-9)
        if math.isinf(wanted.condition_number) or (method == "gram" and wanted.condition_number > 1e6):
            assert math.isinf(actual.condition_number)
        else:
            assert wanted.condition_number * (1 - 2 * bound - 1e-6) <= actual.condition_number
            assert actual.condition_number <= wanted.condition_number * (1 + 1e-6)


def test_products_resolve_conditions_up_to_their_limit() -> None:
    """Rounding of the Gram matrix was seen to cost up to 1e-5 at condition 9e5; above 1e6 nothing is claimed."""
    for condition in (1e3, 1e5, 9e5):
        (found,) = spectra(
            [matrix_with_spectrum(200, 300, torch.logspace(0, -math.log10(condition), 200, dtype=torch.float64))],
            "gram",
        )
        assert found.condition_number == pytest.approx(condition, rel=1e-4)
    (found,) = spectra([matrix_with_spectrum(200, 300, torch.logspace(0, -7, 200))], "gram")
    assert math.isinf(found.condition_number)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_low_precision_matrices_are_measured_as_they_are(dtype: torch.dtype, method: str) -> None:
    matrix = torch.randn(30, 50).to(dtype)
    wanted = expected(torch.linalg.svdvals(matrix.double()))
    (found,) = spectra([matrix], method)
    assert found == pytest.approx(wanted, rel=1e-2 if method == "gram" else 1e-9)
    assert singular_values(matrix).dtype == torch.float32


@pytest.mark.parametrize("method", METHODS)
def test_neighbours_in_a_batch_do_not_matter(method: str) -> None:
    matrix = torch.randn(8, 12)
    nan = torch.full((8, 12), torch.nan)
    infinite = torch.randn(12, 8)
    infinite[3, 3] = math.inf
    found = spectra([nan, torch.zeros(8, 12), matrix, matrix.mT, infinite], method)
    for broken in (found[0], found[4]):
        assert all(math.isnan(value) for value in broken)
    assert found[1][:2] == (0.0, 0.0) and all(math.isnan(value) for value in found[1][2:])
    assert found[2] == found[3] == spectra([matrix], method)[0]


def test_batches_stay_within_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = [torch.randn(6, 5) for _ in range(7)]
    whole = spectra(matrices)
    monkeypatch.setattr("muon_kernels.diagnostics.spectrum.BATCH_ELEMENTS", 61)
    stacks: list[int] = []
    stack = torch.stack
    monkeypatch.setattr(torch, "stack", lambda t, dim=0: stacks.append(len(t) * t[0].numel()) or stack(t, dim=dim))
    assert spectra(matrices) == whole
    assert [s for s in stacks if s > 25] == [60, 60, 60, 30]


def test_default_on_the_cpu_is_exact() -> None:
    matrix = torch.randn(20, 30)
    assert spectra([matrix]) == spectra([matrix], "svd") != spectra([matrix], "gram")


def test_condition_number_is_of_absolute_values() -> None:
    values = torch.tensor([[-8.0, 1.0, 2.0], [-0.5, 3.0, 4.0], [0.0, 1.0, 2.0]])
    assert condition_number(values).tolist() == [8.0, 8.0, math.inf]
    assert condition_number(torch.zeros(2)).isnan()


def test_spectral_norm_of_weights() -> None:
    weight = torch.diag(torch.tensor([3.0, -7.0, 2.0]))
    assert spectral_norm(weight) == pytest.approx(7.0)
    assert spectral_norm(weight.reshape(3, 3, 1, 1)) == pytest.approx(7.0)
    assert spectral_norm(torch.tensor([3.0, 4.0])) == pytest.approx(5.0)


def test_errors_name_what_is_wrong() -> None:
    assert spectra([]) == []
    with pytest.raises(ValueError, match="method must be None or one of svd, gram, got 'power'"):
        spectra([torch.eye(2)], "power")
    with pytest.raises(ValueError, match=r"got \[2\] at index 1"):
        spectra([torch.eye(2), torch.ones(2)])
    with pytest.raises(ValueError, match=r"with elements, got \[0, 3\] at index 0"):
        spectra([torch.ones(0, 3)])
    with pytest.raises(TypeError, match=r"torch\.int64 at index 0"):
        spectra([torch.ones(2, 2, dtype=torch.int64)])


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_gpu_agrees_with_the_cpu(method: str) -> None:
    matrices = [torch.randn(40, 60), torch.randn(60, 40), torch.randn(7, 7, dtype=torch.float64)]
    for found, wanted in zip(spectra([m.cuda() for m in matrices], method), spectra(matrices, method), strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)
