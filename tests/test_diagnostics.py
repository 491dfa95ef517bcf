"""Hessians, activation sizes and statistics over seeds against closed forms."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from muon_kernels.diagnostics import (
    ActivationNorms,
    coordinate_check,
    hessian,
    hessian_eigenvalues,
    layer_picks,
    learned_nothing,
    loss_hessian_eigenvalues,
    seed_statistics,
)


def test_hessian_of_a_quadratic_form_over_two_tensors() -> None:
    matrix = torch.randn(6, 6, dtype=torch.float64)
    symmetric = matrix + matrix.mT

    def form(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        v = torch.cat([a.flatten(), b])
        return v @ matrix @ v

    a, b = torch.randn(2, 2, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    torch.testing.assert_close(hessian(form, a, b), symmetric)
    torch.testing.assert_close(hessian_eigenvalues(form, a, b), torch.linalg.eigvalsh(symmetric))


def test_hessian_of_more_columns_than_a_chunk_with_parameters_in_the_function() -> None:
    weight = nn.Parameter(torch.randn(45, 45, dtype=torch.float64))
    found = hessian(lambda v: (weight @ v).square().sum() / 2, torch.randn(45, dtype=torch.float64))
    torch.testing.assert_close(found, (weight.mT @ weight).detach())
    assert not found.requires_grad


def test_loss_hessian_of_a_linear_model() -> None:
    """Mean squares of a linear map without bias: every output's block is 2 X^T X / (batch * outputs)."""
    model = nn.Sequential(nn.Linear(4, 3, bias=False)).double()
    x = torch.randn(10, 4, dtype=torch.float64)
    found = loss_hessian_eigenvalues(model, lambda y: y.square().mean(), x)
    wanted = torch.linalg.eigvalsh(2 * x.mT @ x / 30).repeat(3).sort().values
    torch.testing.assert_close(found, wanted)
    deep = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    assert len(loss_hessian_eigenvalues(deep, lambda y: y.square().sum(), x.float(), ["2.weight"])) == 10
    with pytest.raises(KeyError, match="3"):
        loss_hessian_eigenvalues(deep, torch.sum, x.float(), ["3.weight"])
    with pytest.raises(ValueError, match="got 10000"):
        hessian(torch.sum, torch.zeros(100, 100))


def test_activation_norms_are_those_of_the_preactivations() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    x = torch.randn(11, 5)
    with ActivationNorms(model) as norms:
        model(torch.randn(2, 5))
        model(x)
    model(100 * x)  # outside: must not be recorded
    first, last = model[0](x), model(x)
    model(100 * x)
    found = norms.read()
    assert list(found) == ["0", "2"]
    for z, size in ((first, found["0"]), (last, found["2"])):
        assert size.mean_abs == pytest.approx(z.abs().mean().item(), rel=1e-5)
        assert size.rms == pytest.approx(z.square().mean().sqrt().item(), rel=1e-5)
    with ActivationNorms(model, ["1"]) as norms:
        model(x)
    assert norms.read()["1"].mean_abs == pytest.approx(first.relu().mean().item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"\['9'\]"):
        ActivationNorms(model, ["9"])
    with pytest.raises(ValueError, match="got none"):
        ActivationNorms(nn.ReLU())


def test_coordinate_check_sees_every_step() -> None:
    model = nn.Linear(3, 2, bias=False)
    x = torch.randn(8, 3)

    def double() -> None:
        with torch.no_grad():
            model.weight.mul_(2)

    records = coordinate_check(model, x, double, 3)
    start = records[0][""].rms
    assert [r[""].rms / start for r in records] == pytest.approx([1, 2, 4, 8], rel=1e-5)
    with pytest.raises(ValueError, match="steps must be >= 0, got -1"):
        coordinate_check(model, x, double, -1)


def test_layer_picks() -> None:
    assert layer_picks(16) == [0, 3, 7, 11, 15]
    assert layer_picks(512) == [0, 127, 255, 383, 511]
    assert layer_picks(1) == [0] and layer_picks(3) == [0, 1, 2]
    with pytest.raises(ValueError, match="layers must be >= 1, got 0"):
        layer_picks(0)


def test_seed_statistics_stop_at_the_shortest_run() -> None:
    mean, std = seed_statistics([[1.0, 2.0, 9.0], [3.0, 6.0]])
    np.testing.assert_allclose(mean, [2.0, 4.0])
    np.testing.assert_allclose(std, [1.0, 2.0])
    mean, std = seed_statistics([[0.9, 0.8], []], empty=0.1)
    np.testing.assert_allclose((mean, std), [[0.5], [0.4]])
    with pytest.raises(ValueError, match="got none"):
        seed_statistics([])
    with pytest.raises(ValueError, match="empty="):
        seed_statistics([[1.0], []])


def test_a_run_that_learns_nothing() -> None:
    assert learned_nothing(math.nan, 0.9) and learned_nothing(math.inf, 0.9) and learned_nothing(1.0, 0.149)
    assert not learned_nothing(1.0, 0.15)


def test_figures_are_imported_only_when_asked_for() -> None:
    code = "import sys, muon_kernels.diagnostics, muon_kernels.structures; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
