"""Markdown tables of one run, and of one run of ours against another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from .results import Key, Mode, Row, Run, best_ours, best_peer, geometric_mean

TITLES = {
    "ops": "Ops",
    "orthogonalize": "Orthogonalisation",
    "step": "Whole optimizer step",
    "distributed": "Optimizer step on several ranks",
}
TOLERANCE = 0.03
"""A slow-down within this, or within the two runs' spreads, is noise."""


def header(run: Run) -> str:
    """Where, with what and on what the numbers were taken."""
    m, state = run.machine, run.ceilings["state"]
    lines = [
        f"Device: {m['device']}. torch {m['torch']}, triton {m['triton']}, CUDA {m['cuda']}, Python {m['python']}.",
        f"Commit: {run.commit}, {run.date}.",
    ]
    if state:
        lines.append(
            f"Driver {state['driver_version']}; clocks under load: {state['clocks.sm']} (of {state['clocks.max.sm']}), "
            f"memory {state['clocks.mem']}."
        )
    rates = ", ".join(f"{name}: {rate / 1e12:.3g}" for name, rate in run.ceilings["gemm"].items())
    lines.append(f"Ceilings of this run: bf16 products (batch x side) in TFLOP/s: {rates}.")
    lines.append(f"Device copy: {run.ceilings['copy'] / 1e12:.3g} TB/s.")
    return "\n".join(lines)


def summary(run: Run, bench: str) -> str:
    """A line for each cell, in ms: floor, ours, the best peer and the ratios; geometric means below."""
    head = ["cell", "floor ms", "ours, called", "ours, best", "which", "best peer", "which", "called ÷ best peer",
            "best ÷ best peer", "best ÷ floor", "best peer ÷ floor"]  # fmt: skip
    lines, ratios = [], []
    for cell in run.cells(bench):
        rows = run.at(bench, cell)
        called, ours, peer = best_ours(row for row in rows if row.mode == "call"), best_ours(rows), best_peer(rows)
        reference, floor = peer.median if peer else math.nan, rows[0].floor
        ratio = (_over(called, reference), _over(ours, reference), _over(ours, floor), _over(peer, floor))
        ratios.append(ratio)
        times = [_ms(floor), _time(called), *_named(ours), *_named(peer)]
        lines.append([cell, *times, *map(_ratio, ratio)])
    means = [geometric_mean(r for r in column if not math.isnan(r)) for column in zip(*ratios, strict=True)]
    lines.append(["**geometric mean**", *[""] * 6, *(f"**{_ratio(mean)}**" for mean in means)])
    return _table(head, lines)


def columns(run: Run, bench: str) -> str:
    """Medians in ms, a column for each provider: called on an idle device, one behind the other, in a CUDA graph."""
    providers = list(dict.fromkeys(row.provider for row in run.rows if row.bench == bench))
    lines = []
    for cell in run.cells(bench):
        found = {(row.provider, row.mode): row.median for row in run.at(bench, cell)}
        lines.append([cell, *(_modes(*(found.get((p, mode)) for mode in get_args(Mode))) for p in providers)])
    return _table(["cell", *providers], lines)


def details(run: Run, bench: str) -> str:
    """A line for each measurement."""
    head = ["cell", "provider", "median ms", "spread", "TFLOP/s dense", "TFLOP/s minimal", "GB/s", "÷ best peer",
            "÷ floor", "error", "‖OOᵀ−I‖/√m", "first call s"]  # fmt: skip
    if bench == "step":
        head += ["host ms", "extra MiB"]
    if bench == "distributed":
        head += ["efficiency", "÷ bound", "predicted ms", "extra MiB"]
    lines = []
    for cell in run.cells(bench):
        rows = run.at(bench, cell)
        peer = best_peer(rows)
        for row in sorted(rows, key=lambda row: row.median):
            accuracy = row.info["accuracy"]
            line = [
                cell, row.label, _ms(row.median), f"{row.spread:.1%}", f"{row.flops_dense / row.median / 1e12:.1f}",
                f"{row.flops_minimal / row.median / 1e12:.1f}", f"{row.bytes / row.median / 1e9:.0f}",
                _ratio(_over(row, peer.median if peer else math.nan)), _ratio(row.median / row.floor),
                f"{accuracy['error']:.2g}", _number(accuracy.get("orthogonality"), ".3f"),
                _number(row.info.get("first_call_s"), ".2f"),
            ]  # fmt: skip
            if bench == "step":
                host, extra = row.info["enqueue_s"], row.info["extra_bytes"]
                line += [_number(host and host * 1e3, ".2f"), _number(extra and extra / 2**20, ".0f")]
            if bench == "distributed":
                predicted, extra = row.info["predicted"], row.info["extra_bytes"]
                line += [_number(row.info["efficiency"], ".3f"), _ratio(row.median / shared_bound(row)),
                         _number(predicted and predicted["step"] * 1e3, ".3g"),
                         _number(extra and extra / 2**20, ".0f")]  # fmt: skip
            lines.append(line)
    return _table(head, lines)


def shared_bound(row: Row) -> float:
    """What a step of several ranks that balances and overlaps everything could not beat by much: its share of the
    measured step on one GPU or the largest matrix, and the exchanges by themselves, both as predicted; NaN if unknown.
    """
    predicted, efficiency = row.info["predicted"], row.info["efficiency"]
    if predicted is None or efficiency is None:
        return math.nan
    return max(efficiency * row.median, predicted["largest"]) + predicted["exchanges"]


def missing(run: Run) -> str:
    """Everything that gave no number, and why."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for entry in run.missing:
        where = f"{entry['cell']} {entry['mode']}"
        reasons.setdefault((entry["provider"], entry["status"], entry["reason"]), []).append(where)
    lines = [
        [provider, status, reason.replace("|", "\\|"), where[0] if len(where) == 1 else f"{len(where)} measurements"]
        for (provider, status, reason), where in reasons.items()
    ]
    return _table(["provider", "", "reason", "where"], lines)


def checks(run: Run) -> str:
    """What several ranks have of the bits of one process, and how fast they exchange."""
    lines = [
        [c["provider"], c["layout"], c["dtype"], f"{c['differing']} of {c['elements']}", f"{c['error']:.2g}"]
        for c in run.checks
    ]
    rates = ", ".join(f"{entry['mib']} MiB: {entry['bytes_per_s'] / 1e9:.3g}" for entry in run.link)
    table = _table(["provider", "layout", "dtype", "elements that differ", "error"], lines)
    return f"{table}\n\nAll-to-all, GB/s that a rank sends: {rates or 'not measured'}."


@dataclass(frozen=True)
class Change:
    """One of our measurements in two runs; None where a run lacks it."""

    key: Key
    before: Row | None
    after: Row | None

    @property
    def ratio(self) -> float:
        """Time after over time before; NaN without both."""
        return self.after.median / self.before.median if self.before and self.after else math.nan

    @property
    def verdict(self) -> str:
        """ "regression", "faster", "missing", "new", or nothing for a change within the noise."""
        if self.before is None or self.after is None:
            return "new" if self.before is None else "missing"
        noise = max(TOLERANCE, self.before.spread, self.after.spread)
        if self.ratio > 1 + noise:
            return "regression"
        return "faster" if self.ratio < 1 - noise else ""


def changes(before: Run, after: Run) -> list[Change]:
    """Our measurements of both runs; for a kind that the later run did not measure at all, none."""
    old, new = ({row.key: row for row in run.rows if row.ours} for run in (before, after))
    keys = [key for key in dict.fromkeys([*old, *new]) if key[0] in after.benches()]
    return [Change(key, old.get(key), new.get(key)) for key in keys]


def comparison(found: Sequence[Change]) -> str:
    """A line for each change; the floor's own change shows what the machine contributed."""
    lines = []
    for change in found:
        bench, cell, provider, mode = change.key
        before, after = change.before, change.after
        floor = after.floor / before.floor if before and after else math.nan
        verdict = f"**{change.verdict}**" if change.verdict in ("regression", "missing") else change.verdict
        lines.append([bench, cell, f"{provider} ({mode})", _time(before), _time(after),
                      _ratio(change.ratio), _ratio(floor), verdict])  # fmt: skip
    mean = geometric_mean(c.ratio for c in found if not math.isnan(c.ratio))
    lines.append(["", "**geometric mean**", "", "", "", f"**{_ratio(mean)}**", "", ""])
    return _table(["bench", "cell", "ours", "before ms", "after ms", "after ÷ before", "floor ÷ floor", ""], lines)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _named(row: Row | None) -> tuple[str, str]:
    return _time(row), row.label if row else "–"


def _over(row: Row | None, reference: float) -> float:
    return row.median / reference if row else math.nan


def _time(row: Row | None) -> str:
    return _ms(row.median if row else None)


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.3g}"


def _modes(call: float | None, queued: float | None, graph: float | None) -> str:
    text = _ms(call) if queued is None else f"{_ms(call)} / {_ms(queued)}"
    return text if graph is None else f"{text} ({_ms(graph)})"


def _ratio(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
