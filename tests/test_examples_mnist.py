"""The MNIST example: start, recording, learning, outputs; and its gates on the real data where these are cached."""

import json
import statistics
import struct
from dataclasses import replace
from pathlib import Path

import _mnist_data
import _mnist_figure
import _mnist_train
import mnist
import mnist_backends
import numpy as np
import pytest
import torch
from _data import cache_file
from _mnist_data import CACHED, IDX_NAMES, load_mnist
from _mnist_glyph import glyph
from _mnist_read import DATASETS, PARTS, Mnist
from _mnist_train import OPTIMIZERS, History, build_model, build_optimizer, prepare_splits, record, train_model
from digits import separable_digits
from matplotlib.axes import Axes
from torch import nn

CPU = torch.device("cpu")
DTYPES = (torch.bfloat16, torch.float32)


@pytest.fixture(scope="module")
def separable() -> Mnist:
    return separable_digits(6000, 1000)


@pytest.fixture
def idx_folder(separable: Mnist, tmp_path: Path) -> Path:
    for name, part in zip(IDX_NAMES, PARTS, strict=True):
        array = getattr(separable, part)
        header = struct.pack(f">{1 + array.ndim}i", 2051 if array.ndim == 3 else 2049, *array.shape)
        (tmp_path / name).write_bytes(header + array.tobytes())
    return tmp_path


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">2i", head[16:])


def train_once(data: Mnist, name: str, start: str, dtype: torch.dtype, epochs: int = 1, seed: int = 0) -> History:
    train, test = prepare_splits(data, CPU, dtype)
    model = build_model(start, seed).to(dtype)
    return train_model(model, build_optimizer(name, model), train, test, epochs, seed)


def test_glyph_is_the_character() -> None:
    image = glyph()
    assert image.shape == (128, 128) and image.dtype == np.float32
    assert image.min() == 0.0 and image.max() == 1.0
    assert image.mean() == pytest.approx(0.855, abs=0.01)
    assert np.linalg.norm(image, 2) == pytest.approx(114.0, abs=1.0)
    ink = image[:, 60:67].max(axis=1) < 0.5
    assert ink.sum() > 95, "the vertical stroke runs through nearly all rows"
    assert (image[50] < 0.5).sum() < 30 < (image[33] < 0.5).sum(), "sides thin, top stroke wide: a box"


def test_shape_start_is_the_random_start_plus_the_glyph() -> None:
    random, shape = build_model("random", 7), build_model("shape", 7)
    for name, weight in shape.named_parameters():
        added = 0.4 * torch.from_numpy(glyph()) if name == "2.weight" else 0.0
        torch.testing.assert_close(weight.detach(), random.get_parameter(name).detach() + added)
    assert not torch.equal(build_model("random", 8)[2].weight, random[2].weight)


def test_muon_gets_every_matrix_and_adam_the_rest() -> None:
    optimizer = build_optimizer("muon", build_model("random", 0))
    matrices, others = optimizer.param_groups
    assert [p.ndim for p in matrices["params"]] == [2, 2, 2, 2]
    assert [p.ndim for p in others["params"]] == [1, 1, 1, 1]
    assert others["use_muon"] is False and others["betas"] == (0.9, 0.999)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}


def test_first_muon_step_moves_a_matrix_by_rms_lr() -> None:
    model = build_model("random", 0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    model(torch.randn(512, 784, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    build_optimizer("muon", model).step()
    for name, weight in model.named_parameters():
        rms = (weight.detach() - before[name]).square().mean().sqrt().item()
        # 1e-3 * sqrt(max) * (an approximate polar factor) has RMS near 1e-3; so has Adam's first step.
        assert 0.6e-3 < rms < 1.2e-3, name


def test_unknown_optimizer_is_named() -> None:
    with pytest.raises(ValueError, match=r"'sgd'.*adam, muon"):
        build_optimizer("sgd", build_model("random", 0))


def test_prepare_normalises(separable: Mnist) -> None:
    for dataset, mean, std in (("mnist", 0.1307, 0.3081), ("fashion", 0.2860, 0.3530)):
        split, test = prepare_splits(replace(separable, dataset=dataset), CPU, torch.float32)
        for part, images in ((split, separable.train_images), (test, separable.test_images)):
            expected = (images[5].reshape(-1) / 255.0 - mean) / std
            np.testing.assert_allclose(part.images[5].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert split.labels.dtype == torch.int64 and split.images.shape == (6000, 784)


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
def test_recorded_weights_do_not_follow_the_training(separable: Mnist, dtype: torch.dtype) -> None:
    train, test = prepare_splits(separable, CPU, dtype)
    model, history = build_model("random", 0).to(dtype), History()
    record(history, model, train, test)
    kept = history.weights[0].clone()
    with torch.no_grad():
        model.get_parameter("2.weight").zero_()
    assert torch.equal(history.weights[0], kept) and kept.abs().max() > 0
    assert history.weights[0].dtype == torch.float32


def test_accuracy_counts_over_uneven_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mnist_train, "EVALUATION_BATCH", 4)
    split = _mnist_train.Split(torch.eye(10), torch.tensor([0, 1, 2, 0, 4, 5, 6, 7, 0, 9]))
    assert _mnist_train.accuracy(nn.Identity(), split) == pytest.approx(0.8)


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_both_optimizers_learn(separable: Mnist, name: str, dtype: torch.dtype) -> None:
    history = train_once(separable, name, "random", dtype, epochs=3)
    assert len(history.test_accuracy) == len(history.weights) == len(history.spectral_norm) == 4
    assert len(history.first_loss) == 3 and history.first_loss[-1] < 0.5 * history.first_loss[0]
    assert history.test_accuracy[0] < 0.3 and history.test_accuracy[-1] > 0.95
    assert not torch.equal(history.weights[0], history.weights[1])


def test_first_loss_is_that_of_the_untrained_network(separable: Mnist) -> None:
    train, test = prepare_splits(separable, CPU, torch.float32)
    batch = torch.randperm(6000, generator=torch.Generator().manual_seed(5))[:512]
    untrained = nn.functional.cross_entropy(build_model("random", 2)(train.images[batch]), train.labels[batch])
    model, batches = build_model("random", 2), []
    history = train_model(model, build_optimizer("adam", model), train, test, 2, 5, lambda: batches.append(1))
    assert history.first_loss[0] == pytest.approx(untrained.item(), rel=1e-6)
    assert len(batches) == 2 * 12, "every batch, the last and smaller one too, is reported"


def test_a_seed_repeats_itself(separable: Mnist) -> None:
    first, second = (train_once(separable, "muon", "shape", torch.bfloat16, seed=3) for _ in range(2))
    assert first.test_accuracy == second.test_accuracy and torch.equal(first.weights[-1], second.weights[-1])


def test_command_writes_numbers_and_figures(
    idx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    mnist.main(["--data", str(idx_folder), "--out", str(out), "--epochs", "1", "--seeds", "2", "--device", "cpu"])
    printed = capsys.readouterr()
    assert "Muon shape" in printed.out and "±" in printed.out and str(mnist.muon_kernels.explain()) in printed.out
    assert "muon shape, seed 1" in printed.err, "the progress bar"
    written = json.loads((out / "results.json").read_text())
    assert written["settings"] == {"epochs": 1, "seeds": 2, "dtype": "bf16", "data": "MNIST from IDX files"}
    assert written["command"].startswith("python examples/mnist.py --data ")
    assert {(start, name) for start, by in written["runs"].items() for name in by} == {
        (start, name) for start in ("random", "shape") for name in OPTIMIZERS
    }
    both = [run["test_accuracy"][1] for run in written["runs"]["random"]["muon"]]
    assert f" / {100 * statistics.mean(both):.2f}±" in printed.out
    assert (out / "weights_random.png").is_file() and (out / "weights_shape.png").is_file()


def test_command_runs_one_start(idx_folder: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(idx_folder), "--out", str(tmp_path / "out"), "--epochs", "1", "--device", "cpu"]
    mnist.main([*arguments, "--start", "shape", "--dtype", "fp32"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["results.json", "runs", "weights_shape.png"]


def test_command_resumes_what_was_finished(idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []

    def counted(*arguments: object) -> History:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(1)
        return train_model(*arguments)

    monkeypatch.setattr(mnist, "train_model", counted)
    out = tmp_path / "out"
    command = ["--data", str(idx_folder), "--out", str(out), "--epochs", "1", "--device", "cpu", "--resume"]
    with pytest.raises(KeyboardInterrupt):
        mnist.main(command)
    trained.clear()
    mnist.main(command)
    assert len(trained) == 1, "three of four runs were there"
    resumed = json.loads((out / "results.json").read_text())["runs"]
    monkeypatch.setattr(mnist, "train_model", train_model)
    mnist.main(command[:-1])
    again = json.loads((out / "results.json").read_text())["runs"]
    for start, by_name in again.items():
        for name, (run,) in by_name.items():
            assert run["test_accuracy"] == resumed[start][name][0]["test_accuracy"]
    # Other settings are another run.
    trained.clear()
    monkeypatch.setattr(mnist, "train_model", counted)
    mnist.main([*command, "--start", "shape", "--dtype", "fp32"])
    assert len(trained) == 2


def test_command_ends_with_one_line_where_data_are_missing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: no train-images"):
        mnist.main(["--data", str(tmp_path)])


@pytest.mark.parametrize("flag", ["--epochs", "--seeds"])
def test_command_refuses_zero(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        mnist.parse([flag, "0"])
    assert "at least 1" in capsys.readouterr().err


def test_table_shows_mean_and_deviation() -> None:
    runs = [History([0.1, 0.90], [0.1, value], [1.0, 2.0]) for value in (0.80, 0.84)]
    text = mnist.table({"random": {"adam": runs}})
    assert f"90.00±0.00 / 82.00±{100 * statistics.stdev([0.80, 0.84]):.2f}" in text
    assert "90.00 / 80.00" in mnist.table({"random": {"adam": runs[:1]}})


def test_figure_keeps_to_eleven_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = 30
    curve = np.linspace(0.1, 0.9, epochs + 1).tolist()
    history = History(curve, curve, curve, [torch.full((128, 128), 0.01 * i) for i in range(epochs + 1)], curve[1:])
    shown: list[float] = []
    draw_image = Axes.imshow

    def imshow(axes: Axes, image: np.ndarray, **limits: object) -> object:
        shown.append(round(float(image[0, 0]), 2))
        assert (limits["vmin"], limits["vmax"]) == (-0.05, 0.45)
        return draw_image(axes, image, **limits)

    monkeypatch.setattr(Axes, "imshow", imshow)
    path = tmp_path / "new" / "figure.png"
    _mnist_figure.draw({"Adam": [history], "Muon": [history]}, "MNIST", "shape", path)
    assert shown == 2 * [round(0.03 * i, 2) for i in range(11)]
    assert png_size(path) == (2200, 1100)


@pytest.mark.skipif(not cache_file(CACHED).is_file(), reason="real MNIST is not cached: run examples/mnist.py once")
def test_real_mnist_gates_after_one_epoch() -> None:
    """The bars of docs/mnist.md at epoch 1, bf16, seed 0."""
    data = load_mnist()
    runs = (("muon", "random"), ("adam", "random"), ("muon", "shape"))
    reached = {run: train_once(data, *run, torch.bfloat16).test_accuracy[1] for run in runs}
    assert reached["muon", "random"] >= 0.955
    assert reached["muon", "random"] - reached["adam", "random"] >= 0.025
    assert reached["muon", "shape"] >= 0.935


@pytest.mark.skipif(not _mnist_data.FASHION_FOLDER.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_real_fashion_mnist_after_one_epoch() -> None:
    data = _mnist_data.load_fashion()
    assert data.is_published() and data.published is DATASETS["fashion"]
    reached = {name: train_once(data, name, "random", torch.bfloat16).test_accuracy[1] for name in OPTIMIZERS}
    assert reached["adam"] >= 0.80 and reached["muon"] >= reached["adam"] + 0.01


def test_backends_side_by_side(idx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where both names stand for the same backend, as on a CPU, the curves are equal, and they fall."""
    out = tmp_path / "out"
    options = ["--backend", "reference", "auto", "--epochs", "4", "--device", "cpu"]
    mnist_backends.main([*options, "--data", str(idx_folder), "--out", str(out)])
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert runs["reference"] == runs["auto"] and len(runs["auto"]["loss"]) == 4 * 12 // mnist_backends.WINDOW
    assert runs["auto"]["loss"][-1] < runs["auto"]["loss"][0] and png_size(out / "loss.png") == (800, 500)
    assert "reference" in capsys.readouterr().out
