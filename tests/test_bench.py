"""The benchmark's own truthfulness: floors, gate, records of failure, tables, comparison."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # last, so that an installed muon_kernels is the one tested

from bench import report, tables
from bench.bench_ops import check
from bench.ceilings import Ceilings
from bench.cells import MODELS, ORTHOGONALIZE, MatrixCell, OpCell, StepCell
from bench.floors import dense_flops, gram_flops, matrix_bytes, minimal_flops, op_cost, standard_flops, step_bytes
from bench.floors import step_flops as flops_of_step
from bench.gate import GateRefused, Judge, Promise, demand, orthogonality
from bench.lab import Absent, Lab
from bench.op_kinds import KINDS
from bench.peers import ORTHOGONALIZERS, STEPPERS
from bench.peers.base import promise
from bench.peers.baselines import newton_schulz, svd
from bench.results import best_peer, geometric_mean, load
from bench.timing import DeviceClock
from muon_kernels import orthogonalize
from muon_kernels.squaring import STAGES

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
H100 = Ceilings({"1x8192": 710e12}, 3.02e12, {})

# ms at 710 TFLOP/s and 3.02 TB/s, worked out by hand from T(3s + 1)m^3, (14 + 6s)m^3 and the bytes of each phase
ANCHORS = [
    (MatrixCell(768, 768, 48), 0.612),
    (MatrixCell(768, 3072, 12), 0.291),
    (MatrixCell(2048, 768, 64), 1.23),
    (MatrixCell(4096, 11008, 1), 2.92),
    (MatrixCell(8192, 8192, 1), 15.5),
]


@pytest.mark.parametrize(("cell", "ms"), ANCHORS, ids=str)
def test_floor_of_an_orthogonalisation(cell: MatrixCell, ms: float) -> None:
    flops = minimal_flops(cell.rows, cell.cols, cell.batch)
    assert H100.floor(flops, matrix_bytes(cell.rows, cell.cols, cell.batch, 2)) * 1e3 == pytest.approx(ms, rel=0.01)


@pytest.mark.parametrize(
    ("model", "dtype", "arithmetic_ms", "ms"),
    [
        ("gpt2", torch.float32, 1.19, 1.81),
        ("gpt2", torch.bfloat16, 1.19, 1.53),
        ("llama1b", torch.bfloat16, 30.0, 33.9),
        ("llama1b", torch.float32, 30.0, 37.1),
    ],
)
def test_floor_of_a_step(model: str, dtype: torch.dtype, arithmetic_ms: float, ms: float) -> None:
    counts = StepCell(model, dtype).counts
    flops, _ = flops_of_step(counts)
    assert flops / H100.flops * 1e3 == pytest.approx(arithmetic_ms, rel=0.01)
    assert H100.floor_in_turn(flops, step_bytes(counts, dtype.itemsize)) * 1e3 == pytest.approx(ms, rel=0.01)


def test_flops_of_the_chains() -> None:
    assert standard_flops(64, 64) == 5 * 4 * 64**3
    assert dense_flops(64, 64) == 5 * 6 * 64**3
    assert gram_flops(64, 256) == (14 + 24) * 64**3
    assert gram_flops(64, 256, steps=2) == (5 + 12) * 64**3
    assert minimal_flops(256, 64) == gram_flops(64, 256) < standard_flops(64, 256)
    assert minimal_flops(64, 64) == standard_flops(64, 64)


def test_cost_of_the_ops() -> None:
    assert op_cost("gram", 64, 256, 3, 4, 2) == (64 * 64 * 256 * 3, 2 * 64 * 64 * 256 * 3, 2 * 3 * (64 * 256 + 64 * 64))
    assert op_cost("polynomial", 64, 64, 1, 4, 2) == (64**3, 2 * 64**3, 2 * 2 * 64 * 64)
    assert op_cost("final", 64, 256, 1, 4, 2)[:2] == (2 * 64 * 64 * 256,) * 2
    assert op_cost("prologue", 64, 64, 1, 4, 2)[2] + op_cost("apply", 64, 64, 1, 4, 2)[2] == 64 * 64 * (14 + 10)


def test_cells_are_the_published_ones() -> None:
    assert len(set(ORTHOGONALIZE)) == 13
    assert sum(r * c for r, c in MODELS["gpt2"]) == pytest.approx(84.9e6, rel=1e-3)
    assert sum(r * c for r, c in MODELS["llama1b"]) == pytest.approx(973e6, rel=1e-3)


@pytest.fixture
def g() -> torch.Tensor:
    return torch.randn(3, 48, 96, generator=torch.Generator().manual_seed(0)).bfloat16()


@pytest.mark.parametrize("tall", [False, True])
def test_gate_accepts_what_is_right(g: torch.Tensor, tall: bool) -> None:
    g = g.mT.contiguous() if tall else g
    accuracy = Judge(g).check(newton_schulz(g), promise())
    assert 0 < accuracy.error <= 2 * accuracy.yardstick_error
    assert Judge(g).check(list(svd(g)), None).orthogonality < 1e-5


@pytest.mark.parametrize(
    "spoil",
    [
        lambda o: o.index_fill(0, torch.tensor([2]), torch.nan),
        lambda o: o[:2],
        lambda o: o.roll(1, 0),
        lambda o: o * 1.1,
        lambda o: torch.cat([o[:, :, :8].roll(1, 1), o[:, :, 8:]], 2),
        lambda o: o.index_put((torch.tensor(1), torch.tensor(5), torch.tensor(7)), o[1, 5, 7] + 0.3),
        lambda o: o + 0.1 * o.square().mean().sqrt() * o.roll(7, 2).sign(),
        torch.zeros_like,
    ],
    ids=["nan", "shape", "other matrix", "scale", "tile", "element", "noise", "zeros"],
)
def test_gate_refuses_what_is_wrong(g: torch.Tensor, spoil) -> None:
    with pytest.raises(GateRefused):
        Judge(g).check(spoil(newton_schulz(g)), promise())


def test_gate_takes_no_nan_for_an_answer(g: torch.Tensor) -> None:
    with pytest.raises(GateRefused, match="non-finite"):
        Judge(g).check(torch.full_like(g, torch.nan), promise())
    with pytest.raises(GateRefused, match="over its limit"):
        demand("error", math.nan, 1.0)


def test_gate_refuses_another_polynomial_and_another_factor(g: torch.Tensor) -> None:
    with pytest.raises(GateRefused):
        Judge(g).check(newton_schulz(g), promise("quintic"))
    flipped = svd(g)
    flipped[1] *= -1
    with pytest.raises(GateRefused, match="trace"):
        Judge(g).check(flipped, None)


def test_promise_of_a_squaring_chain(g: torch.Tensor) -> None:
    expected = orthogonalize(g, method="squaring", compute_dtype=torch.float64)
    torch.testing.assert_close(Promise((), stages=STAGES).evaluate(g.double(), torch.float64).to(g.dtype), expected)


def test_promise_with_rescaled_rows_is_the_same_in_both_orientations(g: torch.Tensor) -> None:
    turbo = Promise(((3.0, -3.2, 1.2),) * 4, rescale="aol")
    wide, tall = turbo.evaluate(g, torch.float64), turbo.evaluate(g.mT, torch.float64)
    assert torch.allclose(wide, tall.mT)
    assert orthogonality(torch.eye(4, 8)[None]) == 0


@pytest.mark.parametrize("kind", list(KINDS))
def test_op_gate(kind: str) -> None:
    op = KINDS[kind]
    inputs = op.make(OpCell(kind, 32, 48, 2), CPU, 0)
    assert check(op, op.torch, inputs, symmetric=False)["error"] < 0.01

    def wrong(tensors: dict[str, list[torch.Tensor]]) -> None:
        op.torch(tensors)
        tensors[op.results[0]][0].flatten()[3:5].mul_(0)

    with pytest.raises(GateRefused):
        check(op, wrong, inputs, symmetric=False)
    op.torch(inputs)  # a right result that lies there already must not pass for a new one
    with pytest.raises(GateRefused):
        check(op, lambda tensors: None, inputs, symmetric=False)


def test_op_gate_wants_symmetry_to_the_bit() -> None:
    op = KINDS["gram"]
    inputs = op.make(OpCell("gram", 32, 48, 1), CPU, 0)

    def nearly(tensors: dict[str, list[torch.Tensor]]) -> None:
        op.torch(tensors)
        tensors["out"][0][0, 0, 1].mul_(1.001)

    check(op, nearly, inputs, symmetric=False)
    with pytest.raises(GateRefused, match="symmetric"):
        check(op, nearly, inputs, symmetric=True)


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


def test_provider_names_are_unique() -> None:
    for providers in (ORTHOGONALIZERS, STEPPERS):
        names = [provider.name for provider in providers]
        assert len(set(names)) == len(names)
        assert any(provider.ours for provider in providers)


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
    assert "| 768x768 x48 | 0.9 (0.8) | 22 | 1.6 | 0.1 |" in lines
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
