"""The monitor beside optimizers, and where its records go."""

import csv
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from muon_kernels import Muon
from muon_kernels.diagnostics import Csv, JsonLines, SpectrumMonitor, TensorBoard, WandB, spectra
from muon_kernels.matrices import split


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    inputs = next(p.shape for p in model.parameters())[1:]
    model(torch.randn(16, *inputs)).square().mean().backward()
    optimizer.step()


def by_key(records: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(r["parameter"], r["quantity"]): r for r in records}


def test_muon_updates_are_orthogonal_and_nothing_is_disturbed() -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 20)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = []
    for model in models:
        named = list(model.named_parameters())
        groups = [
            {"params": [(n, p) for n, p in named if p.ndim == 2], "lr": 0.1, "method": "svd"},
            {"params": [(n, p) for n, p in named if p.ndim != 2], "use_muon": False},
        ]
        optimizers.append(Muon(groups, weight_decay=0.5, compute_dtype=torch.float32))
    monitor = SpectrumMonitor(optimizers[0], every=1)
    for _ in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            torch.manual_seed(int(model[0].weight.abs().sum() * 1e4))
            step(model, optimizer)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)
    records = by_key(monitor.records)
    assert records.keys() == {(n, q) for n in ("0.weight", "2.weight") for q in ("weight", "momentum", "update")}
    for name, scale in (("0.weight", 1.0), ("2.weight", (20 / 8) ** 0.5)):
        update = records[name, "update"]
        assert update["step"] == 3
        # With decay left in, the error would be above 0.01 here.
        assert update["spectral_norm"] == pytest.approx(0.1 * scale, rel=1e-4)
        assert update["orthogonality_error"] < 1e-4 and update["condition_number"] < 1.001
        weight = dict(models[0].named_parameters())[name]
        momentum = optimizers[0].state[weight]["momentum_buffer"]
        for quantity, tensor in (("weight", weight.detach()), ("momentum", momentum)):
            assert records[name, quantity].items() >= spectra([tensor])[0]._asdict().items()


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Muon, torch.optim.Adam, torch.optim.SGD])
def test_any_optimizer(make: type[torch.optim.Optimizer]) -> None:
    """Decoupled decay is not part of the update; coupled decay is."""
    p = nn.Parameter(torch.randn(6, 4))
    optimizer = make([p], lr=0.01, weight_decay=10.0)
    monitor = SpectrumMonitor(optimizer, every=2)
    for _ in range(2):
        before = p.detach().clone()
        p.grad = torch.randn(6, 4)
        optimizer.step()
    shrunk = 0.9 if make in (torch.optim.AdamW, torch.optim.Muon) else 1.0
    records = by_key(monitor.records)
    wanted = spectra([before * shrunk - p.detach()])[0]
    assert records["0", "update"]["spectral_norm"] == pytest.approx(wanted.spectral_norm, rel=1e-5)
    assert (("0", "momentum") in records) == (make is not torch.optim.SGD)


def test_layouts_and_closures_and_skipped_parameters() -> None:
    conv, idle, vector = (nn.Parameter(torch.randn(shape)) for shape in ((4, 3, 2, 1), (5, 2), (7,)))
    groups = [{"params": [conv], "layout": "conv_batched"}, {"params": [idle]}]
    optimizer = Muon([*groups, {"params": [vector], "use_muon": False}])
    monitor = SpectrumMonitor(optimizer, every=1)

    def closure() -> torch.Tensor:
        loss = conv.square().sum() + vector.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    records = by_key(monitor.records)
    wanted = {(f"0[{i}]", q) for i in range(2) for q in ("weight", "momentum", "update")} | {("1", "weight")}
    assert records.keys() == wanted
    assert idle not in optimizer.state, "looking must not make state"
    second = spectra([split(conv.detach(), "conv_batched")[1]])[0]
    assert records["0[1]", "weight"]["spectral_norm"] == second.spectral_norm


def test_every_and_close() -> None:
    p = nn.Parameter(torch.randn(3, 3))
    optimizer = torch.optim.SGD([p], lr=0.1)
    seen: list[int] = []
    writer = types.SimpleNamespace(write=lambda records: seen.append(records[0]["step"]))
    monitor = SpectrumMonitor(optimizer, every=3, writer=writer)
    for count in range(9):
        if count == 8:
            monitor.close()
        p.grad = torch.randn(3, 3)
        optimizer.step()
        assert not monitor._before, "copies are made for recorded steps only"
    assert seen == [3, 6]
    with pytest.raises(ValueError, match="every must be >= 1, got 0"):
        SpectrumMonitor(optimizer, every=0)
    with pytest.raises(ValueError, match="got 'exact'"):
        SpectrumMonitor(optimizer, method="exact")


RECORDS = [
    {"step": 5, "parameter": "a.w", "quantity": "weight", "spectral_norm": 1.5, "condition_number": float("inf")},
    {"step": 5, "parameter": "a.w", "quantity": "update", "spectral_norm": 0.5, "condition_number": float("nan")},
]


def test_files_append_and_read_back(tmp_path: Path) -> None:
    for writer in (JsonLines(tmp_path / "new" / "s.jsonl"), Csv(tmp_path / "new" / "s.csv")):
        writer.write(RECORDS[:1])
        writer.write(RECORDS[1:])
        writer.write([])
    lines = [json.loads(line) for line in (tmp_path / "new" / "s.jsonl").read_text().splitlines()]
    assert lines == [RECORDS[0] | {"condition_number": "inf"}, RECORDS[1] | {"condition_number": None}]
    with (tmp_path / "new" / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["quantity"] for row in rows] == ["weight", "update"] and rows[0]["condition_number"] == "inf"


def test_trackers_get_scalars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[tuple[int, str], float] = {}
    run = types.SimpleNamespace(log=lambda scalars, step: logged.update({(step, k): v for k, v in scalars.items()}))
    WandB(run).write(RECORDS)
    assert logged[5, "a.w/weight/spectral_norm"] == 1.5 and logged[5, "a.w/update/spectral_norm"] == 0.5
    assert len(logged) == 4

    shown: dict[tuple[int, str], float] = {}

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            self.folder = folder

        def add_scalar(self, name: str, value: float, step: int) -> None:
            shown[step, name] = value

        def flush(self) -> None:
            shown[0, self.folder] = 1.0

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    TensorBoard(tmp_path / "log").write(RECORDS)
    assert shown.pop((0, str(tmp_path / "log"))) == 1.0
    assert {k: v for k, v in shown.items() if v == v} == {k: v for k, v in logged.items() if v == v}


def test_missing_tensorboard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"muon_kernels\[tensorboard\]"):
        TensorBoard(tmp_path)
