"""Pictures of one run: speed-up bars, roofline, time over size. Colours are Okabe and Ito's, told apart by all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from .results import Row, Run, best_ours, fastest

OURS = "ours"
BASE = "torch.optim.Muon"
OTHERS = ("gns-kernels", "dion-triton", "torch.compile", "timm")
STYLES = {
    OURS: ("#0072B2", "o", ""),
    "gns-kernels": ("#D55E00", "s", "//"),
    "dion-triton": ("#009E73", "^", ".."),
    "torch.compile": ("#CC79A7", "D", "xx"),
    "timm": ("#E69F00", "v", "\\\\"),
    BASE: ("#000000", "P", "--"),
}
"""Colour, marker and hatch of every column that is drawn."""


def draw_all(run: Run, folder: Path) -> list[Path]:
    """Writes every picture for which the run has numbers, as PNG and SVG; returns the PNG files."""
    figures = {f"speedup-{bench}": speedup(run, bench) for bench in ("orthogonalize", "step") if _has(run, bench, BASE)}
    if "orthogonalize" in run.benches():
        figures["roofline"] = roofline(run)
        figures["time-over-size"] = time_over_size(run)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        for suffix in ("png", "svg"):
            figure.savefig(folder / f"{name}.{suffix}", dpi=150, bbox_inches="tight")
    return [folder / f"{name}.png" for name in figures]


def speedup(run: Run, bench: str) -> Figure:
    """How many times faster than torch.optim.Muon; each column, and it too, in its fastest way."""
    cells = [cell for cell in run.cells(bench) if _column(run, bench, cell, BASE)]
    names = [name for name in (OURS, *OTHERS) if any(_column(run, bench, cell, name) for cell in cells)]
    figure = Figure(figsize=(max(7.0, 1.15 * len(cells) + 2), 4.5))
    axes = figure.subplots()
    width = 0.8 / max(1, len(names))
    for i, name in enumerate(names):
        for j, cell in enumerate(cells):
            base = _column(run, bench, cell, BASE)
            row = _column(run, bench, cell, name)
            if base and row:
                colour, _, hatch = STYLES[name]
                ratio = base.median / row.median
                bar = axes.bar(
                    j + (i - (len(names) - 1) / 2) * width, ratio - 1, width, bottom=1, color=colour, hatch=hatch,
                    edgecolor="white", linewidth=0.5, label=name if j == _first(run, bench, cells, name) else None,
                )  # fmt: skip
                axes.bar_label(bar, [f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"], fontsize=6, padding=1)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_yscale("log")
    for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatted(LogFormatter(minor_thresholds=(1, 0.4)))
    axes.set_xticks(range(len(cells)), cells, rotation=30, ha="right")
    axes.set_ylabel(f"times faster than {BASE}\n(each as called or as a CUDA graph)")
    _finish(axes, run, f"Speed-up: {bench}")
    return figure


def roofline(run: Run) -> Figure:
    """TFLOP/s by the minimal count over arithmetic intensity, under the two ceilings measured in the same run."""
    figure = Figure(figsize=(7.5, 4.8))
    axes = figure.subplots()
    copy, flops = run.ceilings["copy"], run.flops
    drawn = [row for row in run.rows if row.bench == "orthogonalize"]
    intensities = [row.flops_minimal / row.bytes for row in drawn]
    low, high = min([*intensities, flops / copy]) / 2, max([*intensities, flops / copy]) * 2
    axes.plot([low, flops / copy, high], [low * copy / 1e12, flops / 1e12, flops / 1e12], color="grey", linewidth=1.5)
    axes.annotate(
        f"{flops / 1e12:.3g} TFLOP/s (bf16 product), {copy / 1e12:.3g} TB/s (copy)",
        (high, flops / 1e12), ha="right", va="bottom", fontsize=8, xytext=(0, 3), textcoords="offset points",
    )  # fmt: skip
    for name in (BASE, *OTHERS, OURS):
        points = [row for cell in run.cells("orthogonalize") if (row := _column(run, "orthogonalize", cell, name))]
        if points:
            colour, marker, _ = STYLES[name]
            axes.scatter(
                [row.flops_minimal / row.bytes for row in points],
                [row.flops_minimal / row.median / 1e12 for row in points],
                color=colour, marker=marker, s=36, label=name, alpha=0.85, zorder=3,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("minimal FLOPs per byte of input and output")
    axes.set_ylabel("TFLOP/s by the minimal count")
    axes.set_ylim(top=3 * flops / 1e12)
    _finish(axes, run, "Roofline: orthogonalisation")
    return figure


def time_over_size(run: Run) -> Figure:
    """Milliseconds for one square matrix over its side."""
    figure = Figure(figsize=(7.5, 4.8))
    axes = figure.subplots()
    squares = sorted(
        {(row.info["rows"], row.cell) for row in run.rows
         if row.bench == "orthogonalize" and row.info["batch"] == 1 and row.info["rows"] == row.info["cols"]}
    )  # fmt: skip
    for name in (BASE, *OTHERS, OURS):
        points = [(side, row) for side, cell in squares if (row := _column(run, "orthogonalize", cell, name))]
        if points:
            colour, marker, _ = STYLES[name]
            axes.plot(
                [side for side, _ in points], [row.median * 1e3 for _, row in points],
                color=colour, marker=marker, markersize=5, label=name,
            )  # fmt: skip
    floors = [(side, run.at("orthogonalize", cell)[0].floor * 1e3) for side, cell in squares]
    axes.plot(*zip(*floors, strict=True), color="grey", linestyle=":", label="floor")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([side for side, _ in squares], [str(side) for side, _ in squares])
    axes.minorticks_off()
    axes.set_xlabel("side of one square matrix")
    axes.set_ylabel("ms")
    _finish(axes, run, "Time over size: five Newton-Schulz steps")
    return figure


def _column(run: Run, bench: str, cell: str, name: str) -> Row | None:
    rows = run.at(bench, cell)
    return best_ours(rows) if name == OURS else fastest(row for row in rows if row.provider == name)


def _has(run: Run, bench: str, name: str) -> bool:
    return any(_column(run, bench, cell, name) for cell in run.cells(bench))


def _first(run: Run, bench: str, cells: Sequence[str], name: str) -> int:
    return next(j for j, cell in enumerate(cells) if _column(run, bench, cell, name))


def _finish(axes: Axes, run: Run, title: str) -> None:
    axes.set_title(f"{title}\n{run.machine['device']}, commit {str(run.commit)[:10]}", fontsize=10)
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
