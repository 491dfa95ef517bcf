"""What every experiment's command shares: options, a result folder that can be resumed, progress."""

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import muon_kernels

Cell = dict[str, Any]  # what is measured: settings of one run
Row = dict[str, Any]  # a cell and its numbers


def parser(description: str, name: str) -> argparse.ArgumentParser:
    """The options that all experiments take."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--full", action="store_true", help="the large settings, for a GPU")
    options.add_argument("--device", help="default: cuda if there is one")
    options.add_argument("--out", type=Path, help=f"result folder (default runs/{name} or runs/{name}-full)")
    return options


class Experiment:
    """A result folder: `run.json` (command, versions), `results.jsonl` (a line a cell) and figures.

    A command that was interrupted continues: cells whose settings are in the file already are not run again.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.full = options.full
        self.folder = options.out or Path("runs") / (f"{name}-full" if options.full else name)
        self.device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._results = self.folder / "results.jsonl"
        about = {
            "command": shlex.join(["python", *sys.argv]),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine(),
            "versions": {"muon_kernels": muon_kernels.__version__, "torch": torch.__version__},
        }
        (self.folder / "run.json").write_text(json.dumps(about, indent=1) + "\n")
        # The small layers of the small settings are too small to share: a second thread makes them slower.
        if self.device.type == "cpu":
            torch.set_num_threads(1)

    def measure(self, cells: Sequence[Cell], run: Callable[[Cell], Row], what: str) -> list[Row]:
        """The rows of all cells, in their order; those not yet in the file are run, and written one by one.

        JSON has no infinity and no NaN: `run` returns None in their place.
        """
        done = {_key(row["cell"]): row for row in self._read()}
        with tqdm(total=len(cells), desc=what, unit="run") as bar:
            for cell in cells:
                if _key(cell) not in done:
                    row = {"cell": cell, "result": run(cell)}
                    with self._results.open("a") as file:
                        file.write(json.dumps(row, allow_nan=False) + "\n")
                    done[_key(cell)] = row
                bar.update()
        return [done[_key(cell)]["cell"] | done[_key(cell)]["result"] for cell in cells]

    def _read(self) -> list[dict[str, Any]]:
        """The rows of the file; a last line that an interruption cut short is dropped from it."""
        if not self._results.exists():
            return []
        text = self._results.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._results.write_text(whole)
        return [json.loads(line) for line in whole.splitlines()]


def chosen(rows: Sequence[Row], **settings: Any) -> list[Row]:
    """The rows with these settings."""
    return [row for row in rows if all(row[key] == value for key, value in settings.items())]


def _key(cell: Cell) -> str:
    return json.dumps(cell, sort_keys=True)
