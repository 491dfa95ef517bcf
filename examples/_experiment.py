"""What every experiment on MNIST shares: options, a result folder that can be resumed, progress."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _command import command_line, write_run
from _mnist_data import add_data_options, load_images
from _mnist_read import Mnist, idx_md5
from matplotlib.figure import Figure
from tqdm import tqdm

from muon_kernels.diagnostics import figures as drawing

RESULTS = Path("results/local")

Cell = dict[str, Any]  # what is measured: settings of one run
Row = dict[str, Any]  # a cell and its numbers


def parser(description: str, name: str) -> argparse.ArgumentParser:
    """The options that all experiments take."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--full", action="store_true", help="the large settings, for a GPU")
    options.add_argument("--device", help="default: cuda if there is one")
    add_data_options(options)
    options.add_argument(
        "--out", type=Path, metavar="DIR", help=f"default {RESULTS / name}, then -fashion and -full as asked for"
    )
    return options


def start(name: str, description: str, arguments: Sequence[str] | None) -> tuple["Experiment", Mnist]:
    """What the command line asks for, and the data."""
    options = parser(description, name).parse_args(arguments)
    data = load_images(options)
    return Experiment(name, options, idx_md5(data.train_images), command_line(name, arguments)), data


class Experiment:
    """A result folder: `run.json` (command, versions), `results.jsonl` (a line a cell) and figures.

    A command that was interrupted continues: cells whose settings are in the file already, with the same `images` (a
    checksum of what is trained on), are not run again.
    """

    def __init__(self, name: str, options: argparse.Namespace, images: str, command: str) -> None:
        self.full = options.full
        self._images = images
        suffix = ("-fashion" if options.dataset == "fashion" else "") + ("-full" if options.full else "")
        self.folder = options.out or RESULTS / (name + suffix)
        self.device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._results = self.folder / "results.jsonl"
        write_run(self.folder, command, self.device)
        # The small layers of the small settings are too small to share: a second thread makes them slower.
        if self.device.type == "cpu":
            torch.set_num_threads(1)

    def measure(self, cells: Sequence[Cell], run: Callable[[Cell], Row], what: str) -> list[Row]:
        """The rows of all cells, in their order; those not yet in the file are run, and written one by one.

        JSON has no infinity and no NaN: `run` returns None in their place.
        """
        cells = [{"images": self._images} | cell for cell in cells]
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

    def save(self, figures: Mapping[str, Figure], *, dpi: int) -> None:
        """Writes the figures into the folder as PNG."""
        for name, figure in figures.items():
            print("written:", drawing.save(figure, self.folder / f"{name}.png", dpi=dpi))

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
