"""A benchmark run: records of failure, budget, clock."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import measure, report
from bench.gate import GateRefused
from bench.lab import Absent, Lab
from bench.peers import ORTHOGONALIZERS, STEPPERS
from bench.results import load
from bench.timing import DeviceClock

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def _attempt(lab: Lab, error: Exception, *, ours: bool) -> None:
    with lab.attempt("orthogonalize", "cell", "someone", "call", ours=ours):
        raise error


def test_a_peer_that_fails_is_recorded_and_expected() -> None:
    lab = Lab(CPU, smoke=True, budget=None)
    for error, outcome in (
        (RuntimeError("boom\nand more"), pytest.xfail.Exception),
        (GateRefused("error 1 is over its limit 0.1"), pytest.xfail.Exception),
        (ModuleNotFoundError("No module named 'someone'"), pytest.skip.Exception),
        (Absent("needs a GPU"), pytest.skip.Exception),
    ):
        with pytest.raises(outcome):
            _attempt(lab, error, ours=False)
    assert [entry.status for entry in lab.missing] == ["failed", "refused", "absent", "absent"]
    assert lab.missing[0].reason == "RuntimeError: boom"


def test_a_failure_of_ours_fails_the_run_and_is_recorded() -> None:
    lab = Lab(CPU, smoke=True, budget=None)
    for error in (RuntimeError("boom"), GateRefused("wrong")):
        with pytest.raises(type(error)):
            _attempt(lab, error, ours=True)
    assert [entry.status for entry in lab.missing] == ["failed", "refused"]


def test_nothing_new_starts_after_the_budget_or_on_a_lost_device() -> None:
    spent, lost = Lab(CPU, smoke=True, budget=0.0), Lab(CPU, smoke=True, budget=None)
    lost.lost = "the device stopped answering after someone"
    for lab, reason in ((spent, "time budget"), (lost, "stopped answering")):
        with pytest.raises(pytest.skip.Exception, match=reason):
            _attempt(lab, RuntimeError("never raised"), ours=True)
        assert lab.missing[0].status == "skipped"


def test_a_slot_keeps_one_key() -> None:
    lab, made = Lab(CPU, smoke=True, budget=None), []
    for key in ("a", "a", "b", "a"):
        lab.kept("inputs", key, lambda key=key: made.append(key))
    assert made == ["a", "b", "a"]


def test_clock_counts_calls_and_rounds_are_bounded() -> None:
    clock = DeviceClock(CPU)
    clock.calls = 10**9
    assert clock.read() <= clock.read() < 1e3
    assert Lab(CPU, smoke=True, budget=None).rounds(1e-6) == 5
    lab = Lab(CPU, smoke=False, budget=None)
    assert lab.rounds(1e-6) == 100 and lab.rounds(10.0) == 5


class Pedantic:
    """What a measurement needs of pytest-benchmark's fixture."""

    def __init__(self) -> None:
        self.extra_info = {
            "bench": "step", "cell": "cell", "provider": "ours", "mode": "queued", "floor_s": 1.0,
            "accuracy": {"error": 0.0},
        }  # fmt: skip
        self.stats = SimpleNamespace(stats=SimpleNamespace(median=2.0, iqr=0.1))

    def pedantic(self, function: Callable[[], object], *, rounds: int, warmup_rounds: int) -> None:
        for _ in range(rounds + warmup_rounds):
            function()


@pytest.mark.parametrize(("seconds", "in_a_row"), [(1e-6, 10), (0.02, 5), (1.0, 4)])
def test_queued_calls_are_timed_in_rows(seconds: float, in_a_row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "seconds_of", lambda device, function: [function(), seconds][1])
    lab, made = Lab(CPU, smoke=True, budget=None), []
    measure.measure_queued(Pedantic(), lab, lambda: made.append(None))
    assert lab.clock.calls == in_a_row
    assert len(made) == 1 + in_a_row * (1 + 1 + 5)  # one alone and a row to tell how long they take, then the rounds
    assert lab.news == ["step cell  ours (queued)  2000 ms ±5.0%  2.00 x floor  error 0"]


def test_provider_names_are_unique() -> None:
    for providers in (ORTHOGONALIZERS, STEPPERS):
        names = [provider.name for provider in providers]
        assert len(set(names)) == len(names)
        assert any(provider.ours for provider in providers)


SMOKE = """
import sys
import pytest
sys.path.append(".")
from bench import peers
from bench.peers.base import Orthogonalizer, promise

def broken(g):
    raise RuntimeError("a peer that fails")

peers.ORTHOGONALIZERS[1:1] = [
    Orthogonalizer("test-broken", promise(), tier=0, load=lambda: broken),
    Orthogonalizer("test-wrong", promise(), tier=0, load=lambda: lambda g: g * 0.5),
]
raise SystemExit(pytest.main([
    "bench/bench_orthogonalize.py", "bench/bench_step.py", "bench/bench_ops.py", "--smoke", "--device", "cpu", "-q",
    "--providers", "ours,torch.optim,test", "--benchmark-json", {path!r}, "--commit", "abc", "--benchmark-quiet",
    "-p", "no:cacheprovider",
]))
"""


def test_a_run_that_is_told_to_end_writes_what_it_has(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    path = tmp_path / "ended.json"
    run = "-m pytest bench/bench_ops.py --smoke --device cpu -q -p no:cacheprovider --benchmark-quiet --benchmark-json"
    command = [sys.executable, *run.split(), str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        first = next(line for line in running.stdout if " ms " in line)
        running.terminate()
        rest = running.stdout.read()
    assert running.returncode == pytest.ExitCode.INTERRUPTED, rest
    rows = load(path).rows
    assert f"{rows[0].bench} {rows[0].cell}" in first and len(rows) == 1 + rest.count(" ms ")


def test_a_run_goes_on_past_failing_providers(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    path = tmp_path / "smoke.json"
    script = SMOKE.replace("{path!r}", repr(str(path)))
    # One thread: beside other work on both cores this took 65 s of the 120, alone 3 s.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    run = load(path)
    assert run.commit == "abc" and run.benches() == ["orthogonalize", "step", "ops"]
    failures = {(entry["provider"], entry["status"]) for entry in run.missing}
    assert {("test-broken", "failed"), ("test-wrong", "refused")} <= failures
    assert all(not row.provider.startswith("test") for row in run.rows)
    for bench in run.benches():
        assert all(row.median > 0 and row.floor > 0 for row in run.rows if row.bench == bench)
    for cell in run.cells("orthogonalize"):
        assert {"ours", "torch.optim.Muon"} <= {row.provider for row in run.at("orthogonalize", cell)}
    assert report.render(run)
    assert str(ROOT) not in path.read_text()
