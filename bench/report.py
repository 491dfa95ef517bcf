"""Turns results files into tables and pictures, or compares two runs of ours.

    python -m bench.report results.json [more.json ...] [--out FOLDER]
    python -m bench.report --compare before.json after.json

The first form prints markdown, one section for each file (ratios are taken within a run, never across runs), and with
--out also writes report.md and the pictures. The second exits with status 1 if something became slower or is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import tables
from .results import Run, load


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("files", nargs="+", type=Path, help="files written with --benchmark-json")
    parser.add_argument("--out", type=Path, help="folder for report.md and the pictures (needs matplotlib)")
    parser.add_argument("--compare", action="store_true", help="two files: our times before and after")
    options = parser.parse_args(arguments)
    if options.compare:
        if len(options.files) != 2:
            parser.error("--compare needs two files, before and after")
        found = tables.changes(*map(load, options.files))
        print(tables.comparison(found))
        return int(any(change.verdict in ("regression", "missing") for change in found))
    runs = [load(path) for path in options.files]
    text = "\n\n".join(map(render, runs)) + "\n"
    print(text, end="")
    if options.out:
        from .plots import draw_all

        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "report.md").write_text(text)
        for path, run in zip(options.files, runs, strict=True):
            draw_all(run, options.out / path.stem if len(runs) > 1 else options.out)
    return 0


def render(run: Run) -> str:
    """One run as markdown."""
    parts = [tables.header(run)]
    for bench in run.benches():
        parts += [
            f"## {tables.TITLES[bench]}",
            tables.summary(run, bench),
            "Medians in ms, called on an idle device / one behind the other (in a CUDA graph):",
            tables.columns(run, bench),
            tables.details(run, bench),
        ]
    if run.checks:
        parts += ["## Beside one process", tables.checks(run)]
    if run.missing:
        parts += ["## No number", tables.missing(run)]
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
