"""A results file as rows: one for each measurement, with the ratios that the tables show."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Mode = Literal["call", "queued", "graph"]
"""From an idle device; one behind the other, the host ahead of the device; replayed from a CUDA graph."""

Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Row:
    """One measurement: times in seconds, `spread` the interquartile range over the median."""

    bench: str
    cell: str
    provider: str
    mode: str
    ours: bool
    comparable: bool
    median: float
    spread: float
    rounds: int
    floor: float
    flops_minimal: float
    flops_dense: float
    bytes: float
    info: dict[str, Any]

    @property
    def key(self) -> Key:
        """What identifies the measurement in another run."""
        return self.bench, self.cell, self.provider, self.mode

    @property
    def label(self) -> str:
        """The provider, marked by how it was run unless it was called on an idle device."""
        return self.provider if self.mode == "call" else f"{self.provider} ({self.mode})"


@dataclass(frozen=True)
class Run:
    """One results file; only those of several ranks have `checks` against one process and the rates of their `link`."""

    machine: dict[str, Any]
    commit: str | None
    date: str
    ceilings: dict[str, Any]
    missing: list[dict[str, str]]
    checks: list[dict[str, Any]]
    link: list[dict[str, float]]
    rows: list[Row]

    def benches(self) -> list[str]:
        """The kinds of measurement in the file, in its order."""
        return list(dict.fromkeys(row.bench for row in self.rows))

    def cells(self, bench: str) -> list[str]:
        """The cells of one kind, in the file's order."""
        return list(dict.fromkeys(row.cell for row in self.rows if row.bench == bench))

    def at(self, bench: str, cell: str) -> list[Row]:
        """All measurements of a cell."""
        return [row for row in self.rows if (row.bench, row.cell) == (bench, cell)]

    @property
    def flops(self) -> float:
        """The best product rate of the run."""
        return max(self.ceilings["gemm"].values())


def load(path: Path) -> Run:
    """Reads a file that the benchmarks wrote; KeyError names what another file lacks."""
    data = json.loads(path.read_text())
    extra = data["muon_kernels"]
    return Run(
        machine=data["machine_info"],
        commit=data["commit_info"]["id"],
        date=data["datetime"][:10],
        ceilings=extra["ceilings"],
        missing=extra["missing"],
        checks=extra.get("checks", []),
        link=extra.get("link", []),
        rows=[_row(entry) for entry in data["benchmarks"]],
    )


def _row(entry: dict[str, Any]) -> Row:
    info, stats = dict(entry["extra_info"]), entry["stats"]
    fields = ("bench", "cell", "provider", "mode", "ours", "comparable", "flops_minimal", "flops_dense", "bytes")
    return Row(
        **{name: info.pop(name) for name in fields},
        floor=info.pop("floor_s"),
        median=stats["median"],
        spread=stats["iqr"] / stats["median"],
        rounds=stats["rounds"],
        info=info,
    )


def fastest(rows: Iterable[Row]) -> Row | None:
    """The shortest median, if there is any."""
    return min(rows, key=lambda row: row.median, default=None)


def best_ours(rows: Iterable[Row]) -> Row | None:
    """Our fastest way to do that work, whatever the backend and the mode."""
    return fastest(row for row in rows if row.ours and row.comparable)


def best_peer(rows: Iterable[Row]) -> Row | None:
    """The fastest of the others that does the same work."""
    return fastest(row for row in rows if not row.ours and row.comparable)


def geometric_mean(values: Iterable[float]) -> float:
    """NaN for no values."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
