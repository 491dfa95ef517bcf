"""Long runs of a deep predictive-coding network beside backpropagation, weights stepped by Muon or Adam.

See docs/predictive_coding.md.
"""

from dataclasses import dataclass
from functools import partial

import torch
from _experiment import Experiment, chosen, start
from _mnist_read import Mnist
from _mnist_train import prepare_splits
from _pc_methods import by_method, draw_training, summary, training_cells
from _pc_train import best, train

METHODS = ("muPC", "backpropagation")
CHOSEN = ("method", "optimizer", "rate")


@dataclass(frozen=True)
class Settings:
    """How large the experiment is: rates are tried in short runs of one seed, then the best takes the long ones."""

    width: int = 64
    hidden: int = 16
    iterations: int = 1000
    short: int = 300
    test_every: int = 100
    seeds: int = 3
    rates: tuple[float, ...] = (3e-3, 0.01, 0.03, 0.1)


FULL = {"mnist": Settings(512, 128, 5 * 937, 900, 300, 5), "fashion": Settings(512, 128, 15 * 937, 900, 900)}


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    experiment, data = start("pc_long", __doc__.splitlines()[0], arguments)
    run(experiment, FULL[data.dataset] if experiment.full else Settings(), data)


def run(experiment: Experiment, settings: Settings, data: Mnist) -> None:
    """All measurements, then the figure."""
    splits = prepare_splits(data, experiment.device, torch.float32)
    common = {"activation": "relu", "width": settings.width, "hidden": settings.hidden}
    common |= {"inference_steps": settings.hidden, "test_every": settings.test_every}
    rates = dict.fromkeys(METHODS, settings.rates)
    cells = training_cells(common | {"iterations": settings.short}, rates, 1)
    short = experiment.measure(cells, partial(train, splits=splits), "learning rates")
    found = [best(some, "rate")[0] for _, _, some in by_method(short)]
    cells = training_cells(common | {"iterations": settings.iterations}, rates, settings.seeds)
    cells = [cell for row in found for cell in chosen(cells, **{key: row[key] for key in CHOSEN})]
    long = experiment.measure(cells, partial(train, splits=splits), "long runs")
    experiment.save({"training": draw_training(long)}, dpi=90)
    print(summary(short) + summary(long))


if __name__ == "__main__":
    main()
