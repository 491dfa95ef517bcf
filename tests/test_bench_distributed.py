"""The benchmark of several ranks: all its rows on gloo, what is refused a time, and a budget that all ranks keep."""

import math

import distributed_bench_jobs as jobs
import pytest

from bench import report, tables
from bench.layouts import LAYOUTS
from bench.results import load


def test_every_row(ranks, tmp_path):
    path = tmp_path / "four.json"
    assert ranks(4).run(jobs.run_bench, [str(path), "--commit", "abc"]) == [True] * 4
    run = load(path)
    assert run.commit == "abc" and run.machine["ranks"] == 4 and run.machine["backend"] == "gloo"
    assert {entry["provider"] for entry in run.missing} <= {"dion-triton"}  # which is rarely installed
    names = [layout.name for layout in LAYOUTS]
    ours = [check for check in run.checks if check["provider"] == "ours"]
    assert [check["layout"] for check in ours] == names and all(check["differing"] == 0 for check in ours)
    (other,) = (check for check in run.checks if check["provider"] == "torch.optim.Muon")
    assert 0 < other["error"] < jobs.bench_distributed.GATE
    rows = {(row.cell, row.provider): row for row in run.rows if row.provider != "dion-triton"}
    cells = [f"tiny float32, {where}" for where in ("alone", *(f"{name} on 4" for name in names))]
    assert list(rows) == [*((cell, "ours") for cell in cells), ("tiny float32, FSDP2 on 4", "torch.optim.Muon")]
    alone = rows[cells[0], "ours"].median
    for row in list(rows.values())[1:]:
        assert row.info["efficiency"] == pytest.approx(alone / (4 * row.median))
    unknown = {"DDP, state in rows", "HSDP, each replica by itself"}
    for cell, name in zip(cells[1:], names, strict=True):
        row, bound = rows[cell, "ours"], tables.shared_bound(rows[cell, "ours"])
        assert (row.info["predicted"] is None) == (name in unknown) == math.isnan(bound)
        assert name in unknown or bound >= alone / 4 + row.info["predicted"]["exchanges"] * 0.999
    text = report.render(run)
    assert "Beside one process" in text and str(tmp_path) not in path.read_text()


def test_other_results_get_no_time_and_a_spent_budget_ends_the_run(ranks, tmp_path):
    path = tmp_path / "two.json"
    assert ranks(2).run(jobs.run_bench, [str(path)], -1.0) == [False] * 2
    run = load(path)
    assert [row.cell for row in run.rows] == ["tiny float32, alone"]
    refused = [e for e in run.missing if e["status"] == "refused" and e["provider"] != "dion-triton"]
    assert len(refused) == 4 and all("over its limit" in entry["reason"] for entry in refused)
    assert all(entry["reason"] == "error 0 is over its limit -1.0" for entry in refused if entry["provider"] == "ours")

    assert ranks(2).run(jobs.run_bench, [str(path), "--budget", "0"]) == [True] * 2
    run = load(path)
    assert not run.rows and not run.checks and {entry["status"] for entry in run.missing} == {"skipped"}
