"""The character model example: model, batches, optimizers, training, resuming, and what the command writes."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import _charlm_train
import charlm
import numpy as np
import pytest
import torch
from _charlm_batches import Batches
from _charlm_checkpoint import CheckpointError
from _charlm_clock import Clock
from _charlm_optimizers import COMPARED, LABELS, MUON_OPTIONS, Method, build_optimizers, sort_parameters
from _charlm_presets import PRESETS, Preset
from _charlm_report import best_rates, final_loss, optimizer_share, table
from _charlm_text import Text, split
from _charlm_train import Curve, build_model, evaluation_steps, rate_factor, train_model, train_step
from _data import DataError
from _gpt import Gpt, Shape, rotary_tables, rotate
from torch import nn

CPU = torch.device("cpu")
SMALLEST = Preset(Shape(2, 32, 2, 16), 8, 20, 4, 16)
WORDS = b"the quick brown fox jumps over the lazy dog; "


@pytest.fixture(scope="module")
def text() -> Text:
    return split("made here", 100 * WORDS)


def method(name: str) -> Method:
    return Method(name, "auto" if name in MUON_OPTIONS else None, 1e-2)


def train(name: str, text: Text, folder: Path, seed: int = 0, **options) -> tuple[Gpt, Curve]:
    return train_model(method(name), seed, SMALLEST, text, CPU, folder / f"{name}.pt", **options)


@pytest.fixture(scope="module")
def trained(text: Text, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Gpt, Curve, Path]]:
    """`trained(name)`: the model, the curve and the checkpoint of a run that tests share; seed 0."""

    @cache
    def once(name: str) -> tuple[Gpt, Curve, Path]:
        folder = tmp_path_factory.mktemp(name)
        return *train(name, text, folder), folder / f"{name}.pt"

    return once


def losses(curve: Curve) -> tuple[list[float], list[float]]:
    return curve.train_loss, curve.validation_loss


def test_model_begins_close_to_the_uniform_guess() -> None:
    model = build_model(SMALLEST.shape, 0)
    windows = torch.randint(256, (3, 17))
    assert model(windows[:, :-1]).shape == (3, 16, 256)
    assert model.loss(windows).item() == pytest.approx(math.log(256), rel=0.1)


def test_small_preset_has_ten_million_parameters() -> None:
    assert 10e6 < sum(p.numel() for p in Gpt(PRESETS["small"].shape).parameters()) < 11e6


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="got 32 and 3"):
        Gpt(Shape(1, 32, 3, 16))


def test_a_guess_sees_no_later_byte_and_every_earlier_one() -> None:
    model = build_model(SMALLEST.shape, 0)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    inputs = torch.randint(256, (1, 16))
    changed = inputs.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 256
    differs = (model(inputs) != model(changed)).any(-1)[0]
    assert differs.tolist() == [False] * 9 + [True] * 7


def test_loss_is_that_of_the_next_byte() -> None:
    model = build_model(SMALLEST.shape, 0).double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    windows = torch.randint(256, (2, 9))
    chances = model(windows[:, :-1]).softmax(-1)
    expected = -torch.stack([chances[b, i, windows[b, i + 1]].log() for b in range(2) for i in range(8)]).mean()
    assert model.loss(windows).item() == pytest.approx(expected.item(), rel=1e-6)


def test_rotation_depends_on_distance_alone() -> None:
    cosines, sines = (table.double() for table in rotary_tables(12, 8))
    query, key = torch.randn(2, 8, dtype=torch.float64)
    scores = rotate(query.expand(12, 8), cosines, sines) @ rotate(key.expand(12, 8), cosines, sines).T
    for distance in (-7, 0, 1, 5):
        along = scores.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-5, atol=1e-5)
    assert (scores[0, 1:] - scores[0, 0]).abs().min() > 1e-6


def test_training_never_sees_what_it_is_validated_on() -> None:
    content = np.concatenate([np.zeros(900, np.uint8), np.ones(100, np.uint8)])
    batches = Batches(split("made here", content.tobytes()), replace(SMALLEST, steps=200), 0, CPU)
    seen = torch.cat([batches.training(step) for step in range(200)])
    assert seen.shape == (1600, 17) and seen.dtype == torch.int64
    assert seen.max() == 0 and torch.cat(batches.validation()).min() == 1


def test_windows_reach_both_ends_of_their_part() -> None:
    content = (np.arange(220) % 256).astype(np.uint8)
    batches = Batches(split("made here", content.tobytes()), replace(SMALLEST, steps=400), 3, CPU)
    starts = torch.cat([batches.training(step) for step in range(400)])[:, 0]
    assert starts.unique().tolist() == list(range(198 - 16))
    validation = torch.cat(batches.validation())
    assert validation.shape == (16, 17) and (validation.diff() == 1).all()
    assert (validation[0, 0], validation[-1, -1]) == (198, 219)


def test_batches_are_the_seed_s_whatever_the_number_of_steps(text: Text) -> None:
    short, long = (Batches(text, replace(SMALLEST, steps=steps), 5, CPU) for steps in (20, 40))
    assert torch.equal(short.training(19), long.training(19))
    assert not torch.equal(short.training(19), Batches(text, SMALLEST, 6, CPU).training(19))


def test_short_text_is_refused() -> None:
    with pytest.raises(DataError, match="16 bytes are too few for windows of 17"):
        Batches(split("made here", bytes(160)), SMALLEST, 0, CPU)


@pytest.mark.parametrize("name", LABELS)
def test_every_parameter_has_one_optimizer_and_the_matrices_muon(name: str) -> None:
    model = build_model(SMALLEST.shape, 0, method(name).dtype)
    optimizers = build_optimizers(method(name), model)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, model.parameters()))
    assert {group["lr"] for group in groups} == {1e-2}
    assert {group["weight_decay"] for group in groups for p in group["params"] if p.ndim == 1} == {0.0}
    assert {group["weight_decay"] for group in groups for p in group["params"] if p.ndim == 2} == {0.1}
    assert {group["betas"] for group in groups if "betas" in group} == {(0.9, 0.95)}
    matrices, tables, gains = sort_parameters(model)
    assert (len(matrices), len(tables), len(gains)) == (12, 2, 5)
    if name != "adamw":
        assert groups[0]["params"] == matrices and groups[0]["adjust_lr_fn"] == "match_rms_adamw"


def test_unknown_optimizer_is_named() -> None:
    with pytest.raises(ValueError, match=r"'sgd'.*muon, adamw, torch-muon, muon-8bit"):
        build_optimizers(Method("sgd", None, 0.1), build_model(SMALLEST.shape, 0))


@pytest.mark.parametrize("name", COMPARED)
def test_twenty_steps_learn_and_a_seed_repeats_itself(name: str, text: Text, tmp_path: Path) -> None:
    first, curve = train(name, text, tmp_path, seed=3)
    assert curve.step == [0, 5, 10, 15, 20] and curve.tokens == [128 * step for step in curve.step]
    start = build_model(SMALLEST.shape, 3, method(name).dtype)
    untrained = _charlm_train.validation_loss(start, Batches(text, SMALLEST, 3, CPU))
    assert curve.validation_loss[0] == untrained
    assert curve.validation_loss[-1] < 0.75 * curve.validation_loss[0]
    assert len(curve.train_loss) == 4 and curve.train_loss[-1] < curve.train_loss[0]
    assert 0 < curve.optimizer_seconds[-1] < curve.seconds[-1]
    second, again = train(name, text, tmp_path, seed=3)
    assert losses(again) == losses(curve)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert losses(train(name, text, tmp_path, seed=4)[1]) != losses(curve)


def test_our_muon_and_torch_s_train_alike(trained: Callable) -> None:
    ours, theirs = (trained(name)[1] for name in ("muon", "torch-muon"))
    np.testing.assert_allclose(ours.validation_loss, theirs.validation_loss, rtol=2e-2)


@pytest.mark.parametrize(
    ("name", "weights", "matrices", "others"),
    [
        ("muon", torch.float32, 4.0, 8.0),
        ("muon-8bit", torch.float32, 1 + 4 / 256, 8.0),
        ("muon-bf16", torch.bfloat16, 2.0, 4.0),
        ("muon-sr", torch.bfloat16, 2.0, 8.0),
        ("muon-masters", torch.bfloat16, 2.0 + 4.0, 8.0 + 4.0),
    ],
)
def test_variants_are_what_they_are_called(
    name: str, weights: torch.dtype, matrices: float, others: float, trained: Callable
) -> None:
    model, curve, _ = trained(name)
    assert {p.dtype for p in model.parameters()} == {weights} and model.cosines.dtype == torch.float32
    rest = sum(p.numel() for group in sort_parameters(model)[1:] for p in group)
    count = sum(p.numel() for p in model.parameters())
    counters = 4 * 7 + (8 * 19 if name == "muon-sr" else 0)
    expected = (matrices * (count - rest) + others * rest + counters) / count
    assert curve.state_bytes == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", LABELS)
def test_resumed_run_ends_with_the_same_bits(name: str, text: Text, tmp_path: Path, trained: Callable) -> None:
    straight, curve, _ = trained(name)

    steps = iter(range(SMALLEST.steps))

    def interrupt(*_: object) -> None:
        if next(steps) == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(name, text, tmp_path, on_steps=interrupt)
    counts: list[int] = []
    resumed, again = train(name, text, tmp_path, resume=True, on_steps=lambda count, _: counts.append(count))
    assert counts == [10, *[1] * 5, 0, *[1] * 5, 0], "from the evaluation after ten steps, and with every later one"
    assert losses(again) == losses(curve) and again.step == curve.step
    for (key, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    counts.clear()
    finished, _ = train(name, text, tmp_path, resume=True, on_steps=lambda count, _: counts.append(count))
    assert counts == [20] and torch.equal(finished.head.weight, straight.head.weight)


def test_training_follows_the_schedule(trained: Callable) -> None:
    saved = torch.load(trained("torch-muon")[2], weights_only=True)
    rates = {group["lr"] for optimizer in saved["optimizers"] for group in optimizer["param_groups"]}
    assert rates == {1e-2 * rate_factor(19, 20)}


def test_a_step_s_gradient_is_its_own(text: Text) -> None:
    model, batches = build_model(SMALLEST.shape, 0), Batches(text, SMALLEST, 0, CPU)
    optimizers = build_optimizers(Method("adamw", None, 0.0), model)
    for step in (0, 1):
        loss = train_step(model, optimizers, batches.training(step), Clock(CPU))
    expected = model.loss(batches.training(1))
    (gradient,) = torch.autograd.grad(expected, model.head.weight)
    torch.testing.assert_close(model.head.weight.grad, gradient)
    assert loss.item() == expected.item() and not loss.requires_grad


def test_checkpoint_of_another_run_is_refused(text: Text, tmp_path: Path) -> None:
    train("adamw", text, tmp_path)
    with pytest.raises(CheckpointError, match="seed 0 there, 1 here"):
        train("adamw", text, tmp_path, seed=1, resume=True)
    with pytest.raises(CheckpointError, match="text "):
        train("adamw", split("made here", 101 * WORDS), tmp_path, resume=True)


def test_without_resume_a_checkpoint_is_not_read(text: Text, tmp_path: Path) -> None:
    (tmp_path / "adamw.pt").write_bytes(b"not a checkpoint")
    assert train("adamw", text, tmp_path)[1].step[-1] == 20


def test_muon_runs_on_the_backend_that_was_asked_for(text: Text, tmp_path: Path) -> None:
    asked = Method("muon", "cuda", 1e-2)
    with pytest.raises(charlm.muon_kernels.BackendUnavailable, match="cuda"):
        train_model(asked, 0, SMALLEST, text, CPU, tmp_path / "x.pt")


def test_rate_rises_and_falls_to_zero() -> None:
    factors = [rate_factor(step, 100) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * i for i in range(1, 11)]) and factors[100] == 0.0
    assert all(a > b for a, b in pairwise(factors[9:]))
    assert factors[99] == pytest.approx(1 / 91)
    assert rate_factor(0, 1) == 1.0


@pytest.mark.parametrize(("steps", "expected"), [(20, [5, 10, 15, 20]), (10, [3, 5, 8, 10]), (2, [1, 2])])
def test_evaluations_are_even_and_include_the_end(steps: int, expected: list[int]) -> None:
    assert evaluation_steps(replace(SMALLEST, steps=steps)) == expected


def test_validation_loss_is_the_mean_over_uneven_batches(text: Text) -> None:
    model = build_model(SMALLEST.shape, 0)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    batches = Batches(text, replace(SMALLEST, validation_windows=11), 0, CPU)
    whole = model.loss(torch.cat(batches.validation())).item()
    assert [len(windows) for windows in batches.validation()] == [8, 3]
    assert _charlm_train.validation_loss(model, batches) == pytest.approx(whole, rel=1e-5)


def test_clock_adds_up_every_second_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 11.0, 13.0, 17.0, 25.0, 100.0, 101.0, 103.0])
    monkeypatch.setattr("time.process_time", lambda: next(times))
    clock = Clock(CPU)
    for _ in range(5):
        clock.mark()
    assert clock.read() == (15.0, 10.0)
    for _ in range(3):
        clock.mark()
    assert clock.read() == (3.0, 2.0), "what passes between a reading and the next mark does not count"


def curve_with(loss: float) -> Curve:
    return Curve([0, 1], [0, 9], [0.0, 4.0], [0.0, 1.0], [2.0], [5.5, loss], 4.125)


def test_best_rate_is_marked_and_a_diverged_one_never_is() -> None:
    rates = {1e-3: [2.0, 2.2], 2e-3: [1.5, 1.7], 4e-3: [math.nan, 1.0]}
    results = {Method("adamw", None, lr): [curve_with(loss) for loss in seeds] for lr, seeds in rates.items()}
    assert best_rates(results) == {method: results[method] for method in results if method.lr == 2e-3}
    assert final_loss(results[Method("adamw", None, 4e-3)]) == math.inf
    lines = table(results).splitlines()
    assert [line.endswith("best") for line in lines] == [False, False, False, False, True, False]
    assert "1.6000±0.1414" in lines[4] and "25.0%" in lines[4] and "4.12" in lines[4] and " diverged " in lines[5]
    results.pop(Method("adamw", None, 4e-3))
    assert table(results).endswith("best, at an end of the sweep")
    assert optimizer_share([curve_with(1.0)]) == 0.25


def test_command_writes_numbers_a_figure_and_checkpoints(
    text: Text, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(charlm.PRESETS, "tiny", SMALLEST)
    (tmp_path / "some.txt").write_bytes(100 * WORDS)
    out = tmp_path / "new" / "out"
    arguments = ["--data", str(tmp_path / "some.txt"), "--out", str(out), "--device", "cpu", "--seeds", "2"]
    arguments += [
        "--optimizer",
        "muon,adamw",
        "--lr",
        "adamw=0.01,0.02",
        "--steps",
        "4",
        "--backend",
        "auto",
        "reference",
    ]
    charlm.main(arguments)
    printed = capsys.readouterr()
    assert "Muon (reference)" in printed.out and "±" in printed.out and "best" in printed.out
    assert "Muon (reference), lr" in printed.err and "nats/byte" in printed.err, "the progress bar"
    assert (out / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    written = json.loads((out / "results.json").read_text())
    assert written.keys() == {
        *("command", "preset", "shape", "batch", "steps", "evaluations", "validation_windows", "parameters"),
        *("seeds", "data", "data_sha256", "device", "precision", "versions", "runs"),
    }
    assert written["steps"] == 4 and written["data"] == "some.txt" and "--steps 4" in written["command"]
    assert len(written["runs"]) == 2 * 4
    for entry in written["runs"]:
        assert entry.keys() == {"optimizer", "backend", "lr", "seed", *vars(Curve())}
    assert {(r["optimizer"], r["backend"]) for r in written["runs"]} == {
        ("muon", "auto"),
        ("muon", "reference"),
        ("adamw", None),
    }
    assert len(list((out / "checkpoints").glob("*.pt"))) == 8
    charlm.main([*arguments, "--resume"])
    assert json.loads((out / "results.json").read_text())["runs"] == written["runs"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optimizer", "sgd"], "muon-sr,muon-masters, got 'sgd'"),
        (["--lr", "adamw=fast"], "got 'adamw=fast'"),
        (["--lr", "adamw=0"], "positive"),
        (["--lr", "sgd=1"], "got 'sgd=1'"),
        (["--optimizer", "muon", "--lr", "adamw=0.1"], "adamw is not in --optimizer muon"),
        (["--lr", "adamw=0.1", "adamw=0.2"], "named twice"),
        (["--backend", "rocm"], "got 'rocm'"),
        (["--steps", "0"], "at least 1"),
    ],
)
def test_command_refuses(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        charlm.parse(arguments)
    assert words in capsys.readouterr().err


def test_command_ends_with_one_line_where_the_text_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: .*none.txt cannot be read"):
        charlm.main(["--data", str(tmp_path / "none.txt"), "--out", str(tmp_path)])
