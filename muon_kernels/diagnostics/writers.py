"""Where records go: CSV, JSON lines, TensorBoard, Weights & Biases."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any, Protocol

Record = dict[str, str | int | float]


class Writer(Protocol):
    """Anything with this method takes records; all records of one call have the same keys."""

    def write(self, records: list[Record]) -> None: ...


class JsonLines:
    """Appends one JSON object a record to a file. NaN and infinity, which JSON lacks, become null and "inf"."""

    def __init__(self, path: str | Path) -> None:
        self._path = _prepared(path)

    def write(self, records: list[Record]) -> None:
        with self._path.open("a") as file:
            file.writelines(json.dumps({k: _plain(v) for k, v in record.items()}) + "\n" for record in records)


class Csv:
    """Appends one row a record to a file, with a header if it is new."""

    def __init__(self, path: str | Path) -> None:
        self._path = _prepared(path)

    def write(self, records: list[Record]) -> None:
        if not records:
            return
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            if file.tell() == 0:
                writer.writeheader()
            writer.writerows(records)


class TensorBoard:
    """Scalars parameter/quantity/statistic in a log folder.

    Raises:
        ModuleNotFoundError: the `tensorboard` package is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("TensorBoard needs `pip install muon_kernels[tensorboard]`") from error
        self._writer = SummaryWriter(str(folder))

    def write(self, records: list[Record]) -> None:
        for step, scalars in _scalars(records).items():
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)
        self._writer.flush()


class WandB:
    """Scalars parameter/quantity/statistic of a Weights & Biases run, as `wandb.init` returns it."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, records: list[Record]) -> None:
        for step, scalars in _scalars(records).items():
            self._run.log(scalars, step=step)


def _prepared(path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _plain(value: str | int | float) -> str | int | float | None:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _scalars(records: list[Record]) -> dict[int, dict[str, float]]:
    """Step -> scalar's name -> value."""
    steps: dict[int, dict[str, float]] = {}
    for record in records:
        labels = [str(v) for k, v in record.items() if isinstance(v, str)]
        values = {k: v for k, v in record.items() if not isinstance(v, str) and k != "step"}
        steps.setdefault(int(record["step"]), {}).update({"/".join([*labels, k]): v for k, v in values.items()})
    return steps
