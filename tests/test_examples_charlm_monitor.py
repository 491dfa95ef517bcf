"""The command that measures the monitor: which steps are recorded, and what it makes of their seconds."""

import json
from pathlib import Path

import charlm_monitor
import pytest
from _charlm_presets import Preset
from _gpt import Shape


class Seconds:
    """A clock that reads 2 ms for plain steps and 5 ms for every second one, which is recorded."""

    read_so_far = 0

    def __init__(self, device: object) -> None:
        del device

    def mark(self) -> None:
        pass

    def read(self) -> tuple[float, float]:
        Seconds.read_so_far += 1
        return (0.002 if Seconds.read_so_far % 2 else 0.005), 0.0


def test_overhead_is_that_of_recorded_steps_spread_over_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(charlm_monitor.PRESETS, "tiny", Preset(Shape(1, 16, 2, 8), 2, 20, 1, 2))
    monkeypatch.setattr(charlm_monitor, "Clock", Seconds)
    text = tmp_path / "text"
    text.write_bytes(200 * b"the quick brown fox; ")
    out = tmp_path / "out"
    charlm_monitor.main(["--data", str(text), "--out", str(out), "--pairs", "3", "--every", "10", "--device", "cpu"])
    found = json.loads((out / "results.json").read_text())
    assert found["overhead"] == pytest.approx(0.003 / (10 * 0.002)) and found["plain"] == 3 * [0.002]
    assert "2.0 ms a step, 3.0 ms a record: 15.00% at every=10" in capsys.readouterr().out
    records = [json.loads(line) for line in (out / "spectra.jsonl").read_text().splitlines()]
    assert sorted({record["step"] for record in records}) == [2, 4, 6, 8, 10], "four warm-up steps and three pairs"
    # A block's six matrices, embedding and head; weight, momentum and update of each.
    assert len(records) == 5 * 8 * 3
