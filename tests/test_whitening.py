"""Structured whitening: golden vectors, the limits that are Muon or exact, hostile spectra and errors."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from muon_kernels import orthogonalize
from muon_kernels.structures import SUPPORTED_STRUCTURES, WhiteningDiverged, block_diagonal, hierarchical, whiten
from muon_kernels.testing import matrix_with_spectrum

GOLDEN = json.loads((Path(__file__).parent / "golden" / "structures.json").read_text())["structured_whitening"]
CLASSES = SUPPORTED_STRUCTURES | {"block3diagonal": block_diagonal(3), "hierarchical3_2": hierarchical(3, 2)}
NAMES = tuple(SUPPORTED_STRUCTURES)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["structure"])
def test_golden(case: dict[str, Any]) -> None:
    G = torch.tensor(GOLDEN["G"], dtype=torch.float64)
    done = whiten(G, CLASSES[case["structure"]], damping=0.0, tolerance=1e-11)
    torch.testing.assert_close(done.update, torch.tensor(case["O"], dtype=torch.float64), rtol=0, atol=1e-8)
    factor = torch.tensor(case["K"], dtype=torch.float64)
    torch.testing.assert_close(done.factor.to_dense(), factor, rtol=0, atol=1e-8)
    assert case["beta"] == 1.0 and done.steps == case["iterations_to_1e-11"]
    polar = orthogonalize(G, method="svd")
    cosine = (polar * done.update).sum() / torch.linalg.vector_norm(polar) / torch.linalg.vector_norm(done.update)
    assert cosine.item() == pytest.approx(case["cosine_with_polar"], rel=1e-8)
    assert torch.linalg.matrix_norm(done.update, 2).item() == pytest.approx(case["spectral_norm_O"], rel=1e-8)
    assert torch.linalg.vector_norm(done.update).item() == pytest.approx(case["frobenius_norm_O"], rel=1e-8)
    for steps, residual in zip((5, 10), case["residual_after_5_and_10"], strict=True):
        early = whiten(G, CLASSES[case["structure"]], damping=0.0, tolerance=1e-15, max_steps=steps)
        assert early.residual == pytest.approx(residual, rel=1e-2, abs=1e-14)  # three digits stand in the file


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spectrum", ["flat", "condition 1e3", "spiked", "low rank"])
def test_every_structure_becomes_white(name: str, spectrum: str) -> None:
    sigma = {
        "flat": torch.ones(40),
        "condition 1e3": torch.logspace(0, -3, 40),
        "spiked": torch.cat([torch.full((8,), 10.0), torch.ones(32)]),
        "low rank": (torch.arange(40) < 8).float(),
    }[spectrum]
    G = matrix_with_spectrum(40, 40, sigma).float()
    cls = SUPPORTED_STRUCTURES[name]
    damping = 1e-6 if spectrum == "low rank" else 0.0
    done = whiten(G, cls, damping=damping, max_steps=300)
    assert done.update.dtype == torch.float32 and done.residual <= 1e-3 and done.steps < 300
    update = done.update.double()
    white = cls.from_dense(update.mT @ update).to_dense()
    damped = done.factor.from_inner().to_dense() * (damping / 40 * torch.linalg.vector_norm(G.double()) ** 2)
    torch.testing.assert_close(white + damped, torch.eye(40, dtype=torch.float64), rtol=0, atol=2e-3)
    if spectrum != "low rank":
        assert torch.linalg.vector_norm(update).item() == pytest.approx(math.sqrt(40), rel=2e-3)


def test_known_limits() -> None:
    G = torch.randn(50, 20, dtype=torch.float64)
    exact = {"damping": 0.0, "tolerance": 1e-12}
    torch.testing.assert_close(whiten(G, CLASSES["dense"], **exact).update, orthogonalize(G, method="svd"))
    columns = G / torch.linalg.vector_norm(G, dim=0)
    torch.testing.assert_close(whiten(G, CLASSES["diagonal"], **exact).update, columns)
    blocks = torch.cat([orthogonalize(G[:, i : i + 3], method="svd") for i in range(0, 20, 3)], dim=1)
    torch.testing.assert_close(whiten(G, CLASSES["block3diagonal"], **exact).update, blocks)


@pytest.mark.parametrize("exponent", [-150, 150])
def test_scale_does_not_matter(exponent: int) -> None:
    G = torch.randn(12, 6, dtype=torch.float64)
    plain, scaled = (whiten(g, CLASSES["triltoeplitz"]).update for g in (G, G * 10.0**exponent))
    torch.testing.assert_close(plain, scaled)


def test_the_cap_is_reported() -> None:
    done = whiten(torch.randn(20, 10), CLASSES["dense"], max_steps=3)
    assert done.steps == 3 and done.residual > 0.1


def test_divergence_is_an_error() -> None:
    column = torch.randn(8, 1)
    with pytest.raises(WhiteningDiverged, match=r"Dense: the columns of G depend .* raise damping \(now 0\)"):
        whiten(column.expand(8, 2), CLASSES["dense"], damping=0.0)
    with pytest.raises(WhiteningDiverged, match=r"LowerToeplitz: no step lowers .* tolerance \(now 0\)"):
        whiten(torch.randn(20, 10), CLASSES["triltoeplitz"], tolerance=0.0, max_steps=1000)


def test_errors_name_what_is_wrong() -> None:
    dense, G = CLASSES["dense"], torch.randn(4, 3)
    with pytest.raises(TypeError, match="G must be real floating point"):
        whiten(G.int(), dense)
    with pytest.raises(ValueError, match=r"G must be a matrix, got shape \[3\]"):
        whiten(G[0], dense)
    for bad in (torch.zeros(4, 3), G * math.inf):
        with pytest.raises(ValueError, match="finite and not zero"):
            whiten(bad, dense)
    with pytest.raises(TypeError, match="structure must be a class .* got 'dense'"):
        whiten(G, "dense")
    with pytest.raises(ValueError, match="damping must be >= 0 and finite, got -1"):
        whiten(G, dense, damping=-1.0)
    with pytest.raises(ValueError, match="tolerance must be"):
        whiten(G, dense, tolerance=math.nan)
    with pytest.raises(ValueError, match="max_steps must be >= 1, got 0"):
        whiten(G, dense, max_steps=0)
