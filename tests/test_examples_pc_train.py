"""Runs of the predictive-coding network on images: learning, stopping, choosing, and the trends of its energy."""

import json
import math
from pathlib import Path
from typing import Any

import pc_energy
import pc_long
import pc_transfer
import pytest
import torch
from _experiment import Experiment, parser
from _mnist_read import DATASETS
from _mnist_train import Split, prepare_splits
from _pc_methods import METHODS, summary
from _pc_network import PCNetwork
from _pc_train import CHANCE, DEFAULTS, OPTIMIZERS, activity_eigenvalues, best, last_accuracy, network, train
from digits import separable_digits

from muon_kernels.diagnostics import condition_number

CPU = torch.device("cpu")
SMALL = DEFAULTS | {
    "width": 16,
    "hidden": 3,
    "test_every": 10,
    "parametrisation": "mupc",
    "skips": True,
    "seed": 0,
    "activation": "tanh",
    "iterations": 40,
    "inference_steps": 3,
    "rate": 0.05,
}


@pytest.fixture(scope="module")
def splits() -> tuple[Split, Split]:
    return prepare_splits(separable_digits(600, 100), CPU, torch.float32)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", ["gd", "adam", "bp"])
def test_every_method_learns(splits: tuple[Split, Split], method: str, optimizer: str) -> None:
    cell = SMALL | {"optimizer": optimizer, "method": "bp" if method == "bp" else "pc"}
    if method == "adam":
        cell |= {"activity_optimizer": "adam", "activity_rate": 0.01}
    row = train(cell, splits)
    assert len(row["accuracy"]) == len(row["loss"]) == len(row["energy"]) == 4 and row["condition"] == []
    assert row["accuracy"][-1] > 0.8 and row["loss"][-1] < row["loss"][0]
    for loss, energy in zip(row["loss"], row["energy"], strict=True):
        if method == "bp":
            assert energy == pytest.approx(loss, rel=1e-5), "nothing is inferred"
        else:
            assert energy < loss, "inference starts at the feed-forward pass, whose energy is the loss"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_energy_of_weights_that_have_overflowed_is_not_finite(device: str) -> None:
    """A GPU's solver reports its system as singular."""
    net = PCNetwork(6, 8, 2, 4, parametrisation="mupc", activation="linear").to(device)
    x, y = torch.randn(5, 6, device=device), torch.randn(5, 4, device=device)
    assert net.equilibrium_energy(x, y).isfinite()
    with torch.no_grad():
        net.weights[1].fill_(1e30)
    energy = net.equilibrium_energy(x, y)
    energy.backward()
    assert not energy.isfinite()


def test_a_run_that_diverges_is_stopped_and_holds_only_numbers(splits: tuple[Split, Split]) -> None:
    row = train(SMALL | {"optimizer": "Adam", "rate": 1e30, "conditions": True}, splits)
    assert len(row["accuracy"]) < 4 and all(map(math.isfinite, row["loss"] + row["energy"] + row["condition"]))


def test_conditions_are_those_of_the_first_sample_before_inference(splits: tuple[Split, Split]) -> None:
    cell = SMALL | {"optimizer": "Muon", "conditions": True, "iterations": 1, "test_every": 1}
    row = train(cell, splits)
    index = torch.randint(600, (64,), generator=torch.Generator().manual_seed(0))[:1]
    x, y = splits[0].images[index], torch.eye(10)[splits[0].labels[index]]
    values = activity_eigenvalues(network(cell, 784), x, y)
    assert values.shape == (48,) and row["condition"] == pytest.approx([condition_number(values).item()], rel=1e-5)


def test_the_best_settings_are_those_that_end_best() -> None:
    common = {"iterations": 20, "test_every": 10}
    rows = [common | {"rate": r, "accuracy": a} for r, a in ((0.1, [0.5, 0.9]), (0.2, [0.99]), (0.3, [0.95, 0.8]))]
    assert best(rows, "rate") == [rows[0]], "an early stop counts as chance"
    rows.append(common | {"rate": 0.1, "accuracy": []})
    assert last_accuracy([rows[0], rows[3]]) == pytest.approx((0.9 + CHANCE) / 2)
    assert best(rows, "rate") == [rows[2]]


def test_long_runs_take_the_rates_that_were_best_in_short_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    best_rate = {("Muon", "pc"): 0.1, ("Adam", "pc"): 0.2, ("Muon", "bp"): 0.3, ("Adam", "bp"): 0.1}

    def fake(cell: dict[str, Any], splits: Any) -> dict[str, Any]:
        good = cell["rate"] == best_rate[cell["optimizer"], cell["method"]]
        reached = 0.9 if good else 0.95 if cell["rate"] == 0.2 else 0.5
        # 0.2 is ahead until it is stopped, which counts as chance.
        records = cell["iterations"] // cell["test_every"] - (not good and cell["rate"] == 0.2)
        return {"accuracy": [reached] * records, "loss": [1 / (t + 1) for t in range(records)]}

    monkeypatch.setattr(pc_long, "train", fake)
    options = parser("test", "test").parse_args(["--out", str(tmp_path), "--device", "cpu"])
    settings = pc_long.Settings(iterations=40, short=20, test_every=10, rates=(0.1, 0.2, 0.3), seeds=2)
    pc_long.run(Experiment("test", options, "a", "python x.py"), settings, separable_digits(20, 10))
    cells = [json.loads(line)["cell"] for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    short, long = ([cell for cell in cells if cell["iterations"] == n] for n in (20, 40))
    assert len(short) == 12 and len(long) == 8
    assert {(cell["optimizer"], cell["method"], cell["rate"]) for cell in long} == {
        (*key, rate) for key, rate in best_rate.items()
    }
    assert sorted(cell["seed"] for cell in long) == [0] * 4 + [1] * 4
    assert all(cell["inference_steps"] == cell["hidden"] for cell in cells)
    assert pc_long.FULL.keys() == DATASETS.keys()


def test_the_summary_counts_a_stopped_run_as_chance() -> None:
    cell = {"optimizer": "Muon", "rate": 0.1, "iterations": 20, "test_every": 10} | METHODS["muPC"]
    assert "Muon, muPC              lr 0.1: 50.00±40.00" in summary(
        [cell | {"accuracy": a} for a in ([0.5, 0.9], [0.8])]
    )


def test_condition_numbers_and_ratios_at_the_start() -> None:
    cell = {"skips": True, "seeds": 2}
    at = {
        (p, w, h): pc_energy.at_the_start(cell | {"parametrisation": p, "width": w, "hidden": h}, CPU)
        for p in ("sp", "mupc")
        for w, h in ((8, 4), (64, 2), (64, 4))
    }
    assert at["sp", 64, 4]["condition"] > 3 * at["sp", 64, 2]["condition"], "grows with depth"
    assert at["mupc", 64, 4]["ratio"] < 1.2 < at["mupc", 8, 4]["ratio"], "tends to 1 with width"
    assert at["sp", 64, 4]["ratio"] > 2.5


@pytest.mark.parametrize("skips", [False, True])
def test_the_equilibrium_energy_has_the_gradient_of_predictive_coding(skips: bool) -> None:
    """Inference run to its end, then the energy's gradient in the weights with the activities held."""
    net = PCNetwork(5, 4, 3, 2, activation="linear", parametrisation="mupc", skips=skips).double()
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    wanted = torch.autograd.grad(net.equilibrium_energy(x, y), list(net.weights))
    z = net.infer(x, y, steps=2000, lr=0.3)
    found = torch.autograd.grad(net.energy(x, y, z), list(net.weights))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_energies_over_training(splits: tuple[Split, Split]) -> None:
    cell = {"parametrisation": "mupc", "skips": True, "activation": "linear", "seed": 0, "iterations": 30}
    cell |= {"rate": 0.1, "optimizer": "Muon", "hidden": 4}
    rows = {w: pc_energy.train(cell | {"width": w}, splits[0]) for w in (4, 64)}
    for row in rows.values():
        assert len(row["loss"]) == len(row["energy"]) == 31
        assert all(energy <= loss * (1 + 1e-5) for loss, energy in zip(row["loss"], row["energy"], strict=True))
        assert row["loss"][-1] < row["loss"][0]
    assert pc_energy.ratio(rows[64], 0) < 1.2 < pc_energy.ratio(rows[4], 0)
    diverged = pc_energy.train(cell | {"width": 4, "rate": 1e20}, splits[0])
    assert 1 <= len(diverged["loss"]) < 31 and math.isnan(pc_energy.ratio(diverged, 30))


def test_lowest_losses_are_means_over_seeds() -> None:
    assert pc_transfer.lowest_loss([{"loss": [3.0, 1.0, 2.0]}, {"loss": [5.0]}]) == 3.0
    assert math.isnan(pc_transfer.lowest_loss([{"loss": [3.0]}, {"loss": []}]))
    rows = [
        {"optimizer": o, "width": 8, "rate": r, "activity_rate": a, "loss": loss}
        for o in OPTIMIZERS
        for r, a, loss in ((0.1, 0.2, [0.5]), (0.3, 0.4, [0.25]), (0.5, 0.6, []))
    ]
    assert pc_transfer.summary(rows, "width", (8,)).count("8: 0.3, 0.4 (0.250)") == 2
