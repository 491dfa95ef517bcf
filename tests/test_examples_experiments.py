"""The experiments: resuming, the trends they exist for, and that each command writes its figures."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import _experiment
import pc_energy
import pc_inference
import pc_long
import pc_transfer
import predictive_coding
import pytest
import spectra
import structures
import torch
import transfer
from _experiment import Experiment, chosen, parser
from _mnist_read import Mnist
from _mnist_train import Split, prepare_splits
from _pc_network import PCNetwork
from _spectra_hessian import linear_hessian
from digits import separable_digits
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from muon_kernels.diagnostics import hessian

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def separable() -> Mnist:
    return separable_digits(600, 100)


@pytest.fixture(scope="module")
def split(separable: Mnist) -> Split:
    return prepare_splits(separable, CPU, torch.float32)[0]


def options(out: Path) -> argparse.Namespace:
    return parser("test", "test").parse_args(["--out", str(out), "--device", "cpu"])


def test_interrupted_experiments_continue(tmp_path: Path) -> None:
    runs: list[int] = []
    broken = [True]

    def run(cell: dict[str, Any]) -> dict[str, Any]:
        if cell["n"] == 3 and broken:
            raise RuntimeError(broken.pop())
        runs.append(cell["n"])
        return {"square": cell["n"] ** 2}

    cells = [{"part": "a", "n": n} for n in (2, 1, 0, 3)]
    with pytest.raises(RuntimeError):
        Experiment("test", options(tmp_path / "new"), "a", "python x.py").measure(cells, run, "squares")
    results = tmp_path / "new" / "results.jsonl"
    results.write_text(results.read_text() + '{"cell": {"part": "a", "n"')  # a line that was cut short
    rows = Experiment("test", options(tmp_path / "new"), "a", "python x.py").measure(cells, run, "squares")
    assert runs == [2, 1, 0, 3], "nothing is run twice"
    assert rows == [{"images": "a", "part": "a", "n": n, "square": n * n} for n in (2, 1, 0, 3)]
    assert len([json.loads(line) for line in results.read_text().splitlines()]) == 4
    assert chosen(rows, n=3) == [rows[3]] and chosen(rows, part="b") == []
    about = json.loads((tmp_path / "new" / "run.json").read_text())
    assert about["command"] == "python x.py" and about["versions"]["torch"] == torch.__version__
    # Another setting is another cell, and so are the same settings on other images.
    Experiment("test", options(tmp_path / "new"), "a", "python x.py").measure([{"part": "b", "n": 2}], run, "squares")
    assert runs[-1] == 2
    rows = Experiment("test", options(tmp_path / "new"), "b", "python x.py").measure(cells[:2], run, "squares")
    assert runs[-2:] == [2, 1] and [row["images"] for row in rows] == ["b", "b"]


def test_orthogonal_hessians_do_not_depend_on_width_and_worsen_with_depth() -> None:
    cell = {"activation": "linear", "seeds": 1}
    found = {(w, h): spectra.hessian(cell | {"width": w, "hidden": h}, CPU) for w in (4, 8) for h in (2, 4, 8)}
    for w in (4, 8):
        # Two hidden layers: [[2, -1], [-1, 2]] in every singular direction.
        assert found[w, 2]["condition"] == pytest.approx(3.0, rel=1e-6)
        assert sorted(set(found[w, 2]["eigenvalues"])) == [1.0, 3.0] and len(found[w, 2]["eigenvalues"]) == 2 * w
        assert found[w, 2]["condition"] < found[w, 4]["condition"] < found[w, 8]["condition"]
    assert found[4, 8]["condition"] == pytest.approx(found[8, 8]["condition"], rel=1e-6)
    assert (found[4, 2]["smallest"], found[4, 2]["largest"]) == pytest.approx((1.0, 3.0), rel=1e-6)
    assert set(found[4, 2]["D"]) == {2.0} and set(found[4, 2]["O"]) == {-1.0, 1.0}
    assert found[4, 8]["H"] == pytest.approx(found[4, 8]["eigenvalues"], abs=1e-4)


@pytest.mark.parametrize("skips", [False, True])
def test_linear_hessians_in_closed_form_are_those_of_the_energy(skips: bool) -> None:
    net = PCNetwork(5, 4, 3, 2, activation="linear", parametrisation="mupc", skips=skips).double()
    x, y = torch.randn(1, 5, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
    whole, diagonal, other = linear_hessian(net)
    torch.testing.assert_close(whole, hessian(lambda *z: net.energy(x, y, torch.stack(z)), *net.states(x)[:-1]))
    torch.testing.assert_close(diagonal, torch.block_diag(*(diagonal[i : i + 4, i : i + 4] for i in (0, 4, 8))))
    torch.testing.assert_close(other, whole - diagonal)
    assert not any(other[i : i + 4, i : i + 4].any() for i in (0, 4, 8))


def test_mupc_keeps_activations_at_one_size(split: Split) -> None:
    sizes = {}
    for parametrisation in ("sp", "mupc"):
        for layers in (8, 32):
            cell = {"parametrisation": parametrisation, "skips": parametrisation == "mupc", "optimizer": "Muon"}
            row = spectra.forward(cell | {"width": 32, "layers": layers}, split)
            for quantity in ("mean_abs", "rms", "spectral_norm"):
                assert len(row[quantity]) == 3 and len(row[quantity][0]) == 5
            assert all(a <= b for a, b in zip(row["mean_abs"][0], row["rms"][0], strict=True))
            sizes[parametrisation, layers] = row["rms"][2][2]
    assert 0.5 < sizes["mupc", 32] / sizes["mupc", 8] < 2
    assert sizes["sp", 32] < 1e-2 * sizes["sp", 8]
    deep = {"parametrisation": "sp", "skips": True, "optimizer": "SGD", "width": 8, "layers": 400}
    row = spectra.forward(deep, split)
    assert row["rms"][2][-1] is None and row["spectral_norm"][2][-1] is None and row["rms"][0][0] > 0


def test_muon_updates_every_direction_and_others_few(split: Split) -> None:
    rows = {o: spectra.train({"optimizer": o, "iterations": 4, "every": 2}, split) for o in spectra.TRAINED}
    for row in rows.values():
        assert row["step"] == [2, 4] and len(row["loss"]) == len(row["weight spectral_norm"]) == 2
    others = max(rows[o]["update stable_rank"][-1] for o in ("Adam", "SGD"))
    assert rows["Muon"]["update stable_rank"][-1] > 3 * others
    # Newton-Schulz with the original coefficients: singular values up to 1.2, times lr 0.02.
    assert 0.02 < rows["Muon"]["update spectral_norm"][-1] < 0.025


def test_transfer_measures_losses(split: Split) -> None:
    cell = {"steps": 10, "batch": 32, "parametrisation": "sp", "skips": False, "width": 16, "hidden": 2, "seed": 0}
    losses = {
        (scale, rate): transfer.train(cell | {"scale": scale, "rate": rate}, split)["loss"]
        for scale in ("constant", "max_dim", "Adam")
        for rate in (1e-6, 0.01, 1e6)
    }
    for scale in ("constant", "max_dim", "Adam"):
        assert losses[scale, 0.01] < 0.95 * losses[scale, 1e-6] and losses[scale, 1e6] > 10
    assert losses["max_dim", 0.01] != losses["constant", 0.01]
    rows = [{"rate": 0.1, "loss": 1.0, "width": 8}, {"rate": 0.1, "loss": 4.0, "width": 8}]
    rows += [{"rate": 0.1, "loss": 9.0, "width": 16}, {"rate": 0.01, "loss": 3.0, "width": 8}]
    assert transfer.mean_losses(rows, width=8) == pytest.approx({0.01: 3.0, 0.1: 2.0})


TINY: dict[Any, tuple[Any, tuple[str, ...]]] = {
    spectra: (
        spectra.Settings((2, 4), (2, 3), ("linear",), 1, (("sp", True),), (8, 16), 4, (4, 5), (8,), 4, 2),
        ("hessian_slices", "hessian_theory", "hessian_extremes", "forward_layers", "forward_depth_8", "training"),
    ),
    transfer: (
        transfer.Settings((4, 8), 1, (1, 2), 4, (0.01, 0.1), (0.01, 0.1), 2, 8),
        ("width", "depth", "contour"),
    ),
    predictive_coding: (
        predictive_coding.Settings(4, 2, 4, 2, 1, (0.1, 0.0), 4, (1, 2)),
        ("training", "activity_decay"),
    ),
    pc_energy: (
        pc_energy.Settings((2, 4), (2, 3), 1, (1, 4), (1, 2), 2, (0, 2)),
        ("condition", "ratio", "ratio_training", "training"),
    ),
    pc_transfer: (
        pc_transfer.Settings((2, 4), 1, (1, 2), 4, (0.01, 0.1), (0.1, 0.2), 4, 2),
        ("width", "depth", "accuracy"),
    ),
    pc_long: (
        pc_long.Settings(4, 2, 4, 2, 2, 2, (0.01, 0.1)),
        ("training",),
    ),
    pc_inference: (
        pc_inference.Settings(("tanh",), 4, (1, 2), (0.1,), 2, 4, 2),
        ("methods",),
    ),
}


def save_quickly(figure: Figure, path: Path, dpi: int) -> Path:
    """Drawn once, small and without fitting the axes into the figure: `savefig` takes four times as long."""
    figure.set_layout_engine("none")
    figure.set_dpi(dpi / 4)
    FigureCanvasAgg(figure).print_png(path)
    return path


@pytest.mark.parametrize("module", TINY, ids=lambda module: module.__name__)
def test_commands_write_their_figures(
    module: Any, tmp_path: Path, separable: Mnist, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, figures = TINY[module]
    monkeypatch.setattr(_experiment, "load_images", lambda options: separable)
    monkeypatch.setattr(module, "Settings", lambda: settings)
    monkeypatch.setattr(_experiment.drawing, "save", save_quickly)
    arguments = ["--out", str(tmp_path), "--device", "cpu"]
    module.main(arguments)
    for name in figures:
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    measured = (tmp_path / "results.jsonl").read_text()
    assert all(math.isfinite(len(json.loads(line)["result"])) for line in measured.splitlines())
    monkeypatch.setattr(_experiment.drawing, "save", lambda figure, path, dpi: path)
    module.main(arguments)
    assert (tmp_path / "results.jsonl").read_text() == measured, "everything was there already"
    command = json.loads((tmp_path / "run.json").read_text())["command"]
    assert command == f"python examples/{module.__name__}.py --out {tmp_path} --device cpu"
    assert "run" in capsys.readouterr().err, "the progress bar"


def test_missing_data_end_the_command(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: no train-images-idx3-ubyte"):
        transfer.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_structure_gallery_command(tmp_path: Path) -> None:
    structures.main(["--out", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "diagonal.png",
        "run.json",
        "structures.gif",
        "structures.png",
    ]
