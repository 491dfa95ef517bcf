"""The benchmark's tables, figures and comparison of two runs."""

import json
import math
from pathlib import Path

import pytest

from bench import report, tables
from bench.floors import dense_flops, matrix_bytes, minimal_flops
from bench.results import best_peer, geometric_mean, load


def _entry(cell: str, provider: str, ms: float, *, mode: str = "call", spread: float = 0.01, **changes) -> dict:
    rows, cols, batch = (int(x) for x in cell.replace("x", " ").split())
    info = {
        "bench": "orthogonalize", "cell": cell, "rows": rows, "cols": cols, "batch": batch, "provider": provider,
        "ours": provider.startswith("ours"), "comparable": provider != "dion-turbo", "mode": mode,
        "flops_minimal": minimal_flops(rows, cols, batch), "flops_dense": dense_flops(rows, cols, batch),
        "bytes": matrix_bytes(rows, cols, batch, 2), "floor_s": minimal_flops(rows, cols, batch) / 710e12,
        "first_call_s": 0.5, "accuracy": {"error": 0.01, "orthogonality": 0.3},
    } | changes  # fmt: skip
    return {"extra_info": info, "stats": {"median": ms / 1e3, "iqr": spread * ms / 1e3, "rounds": 20}}


def _write(path: Path, entries: list[dict], missing: list[dict] = []) -> Path:  # noqa: B006
    path.write_text(json.dumps({
        "machine_info": {"device": "Some GPU", "torch": "2", "triton": "3", "cuda": "13", "python": "3.12"},
        "commit_info": {"id": "abcdef0123"}, "datetime": "2026-01-02T03:04:05", "benchmarks": entries,
        "muon_kernels": {
            "ceilings": {"gemm": {"1x8192": 710e12, "1x768": 46e12}, "copy": 3.02e12, "state": {}}, "missing": missing,
        },
    }))  # fmt: skip
    return path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    entries = [
        _entry("768x768 x48", "ours", 0.9), _entry("768x768 x48", "ours", 0.8, mode="graph"),
        _entry("768x768 x48", "ours", 0.85, mode="queued"),
        _entry("768x768 x48", "torch.optim.Muon", 22.0), _entry("768x768 x48", "gns-kernels", 1.6),
        _entry("768x768 x48", "dion-turbo", 0.1),
        _entry("4096x4096 x1", "ours", 2.5), _entry("4096x4096 x1", "torch.optim.Muon", 5.0),
    ]  # fmt: skip
    reason = {"bench": "orthogonalize", "cell": "768x768 x48", "provider": "timm", "mode": "call"}
    return _write(tmp_path / "run.json", entries, [reason | {"status": "failed", "reason": "RuntimeError: a|b"}])


def test_report_of_a_run(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(results), "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert text == (tmp_path / "out" / "report.md").read_text()
    lines = text.splitlines()
    (first,) = [line for line in lines if line.startswith("| 768x768 x48 | 0.612")]
    assert first == "| 768x768 x48 | 0.612 | 0.9 | 0.8 | ours (graph) | 1.6 | gns-kernels | 0.56 | 0.50 | 1.31 | 2.61 |"
    (mean,) = [line for line in lines if line.startswith("| **geometric mean**")]
    assert "| **0.53** | **0.50** |" in mean
    assert "| timm | failed | RuntimeError: a\\|b | 768x768 x48 call |" in lines
    assert "| 768x768 x48 | 0.9 / 0.85 (0.8) | 22 | 1.6 | 0.1 |" in lines
    widths = {line.count(" | ") for line in lines if line.startswith(("| 768x768 x48 | ours", "| 768x768 x48 | gns"))}
    assert len(widths) == 1
    for name in ("speedup-orthogonalize", "roofline", "time-over-size"):
        for suffix in ("png", "svg"):
            assert (tmp_path / "out" / f"{name}.{suffix}").stat().st_size > 1000


def test_best_peer_does_the_same_work(results: Path) -> None:
    run = load(results)
    peer = best_peer(run.at("orthogonalize", "768x768 x48"))
    assert peer is not None and peer.provider == "gns-kernels"
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0) and math.isnan(geometric_mean([]))


def test_comparison_marks_what_became_slower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = ["768x768 x1", "768x768 x2", "768x768 x3", "768x768 x4", "768x768 x5"]
    before = _write(
        tmp_path / "a.json", [_entry(cell, "ours", 1.0) for cell in cells] + [_entry(cells[0], "eager", 1.0)]
    )
    after = _write(tmp_path / "b.json", [
        _entry(cells[0], "ours", 1.02), _entry(cells[1], "ours", 1.2), _entry(cells[2], "ours", 1.2, spread=0.3),
        _entry(cells[3], "ours", 0.7), _entry(cells[4], "ours-cuda", 1.0), _entry(cells[0], "eager", 9.0),
    ])  # fmt: skip
    found = tables.changes(load(before), load(after))
    assert {change.key[1:3]: change.verdict for change in found} == {
        (cells[0], "ours"): "", (cells[1], "ours"): "regression", (cells[2], "ours"): "", (cells[3], "ours"): "faster",
        (cells[4], "ours"): "missing", (cells[4], "ours-cuda"): "new",
    }  # fmt: skip
    assert report.main(["--compare", str(before), str(after)]) == 1
    assert "| 1.20 | 1.00 | **regression** |" in capsys.readouterr().out
    assert report.main(["--compare", str(before), str(before)]) == 0
    slower = _write(tmp_path / "c.json", [_entry(cell, "ours", 1.1) for cell in cells])
    fewer = _write(tmp_path / "d.json", [_entry(cell, "ours", 1.0) for cell in cells[1:]])
    assert report.main(["--compare", str(before), str(slower)]) == 1
    assert report.main(["--compare", str(before), str(fewer)]) == 1
