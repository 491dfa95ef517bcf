"""One run of a `PCNetwork` on images, by predictive coding or backpropagation: what the commands about it share."""

import math
from collections.abc import Iterator

import torch
from _experiment import Cell, Row, chosen
from _mnist_train import Split, accuracy
from _pc_network import PCNetwork, Penalties, half_squared_error
from _replayed import replayed
from torch import Tensor

from muon_kernels import Muon
from muon_kernels.diagnostics import condition_number, hessian_eigenvalues, learned_nothing

CLASSES = 10
CHANCE = 0.1
BATCH = 64
OPTIMIZERS = ("Muon", "Adam")

DEFAULTS: Cell = {
    "method": "pc",  # or "bp": backpropagation, with muPC's scalings Depth-muP
    "activity_optimizer": "gd",
    "activity_rate": 0.2,  # for each sample's own energy; the largest eigenvalue of its Hessian is about 5 at the start
    "activity_decay": 0.0,
    "conditions": False,
}
"""Settings of a cell that most experiments leave as they are; the others are read by `train` and `network`."""


def network(cell: Cell, inputs: int, outputs: int = CLASSES) -> PCNetwork:
    """The network of a cell at its start."""
    return PCNetwork(
        inputs,
        cell["width"],
        cell["hidden"],
        outputs,
        activation=cell["activation"],
        parametrisation=cell["parametrisation"],
        skips=cell["skips"],
        seed=cell["seed"],
    )


def make_optimizer(name: str, net: PCNetwork, rate: float) -> torch.optim.Optimizer:
    """Muon, scaled by sqrt(max(rows, cols)), so that entries move as much as under Adam at the same rate; or Adam."""
    if name == "Muon":
        return Muon(net.parameters(), rate, 0.0, adjust_lr_fn="max_dim")
    return torch.optim.Adam(net.parameters(), rate, capturable=next(net.parameters()).is_cuda)


def batches(cell: Cell, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless random batches of images and one-hot labels, the same for every cell with this seed."""
    order = torch.Generator().manual_seed(cell["seed"])
    one_hot = torch.eye(CLASSES, dtype=split.images.dtype, device=split.images.device)
    while True:
        index = torch.randint(len(split.labels), (BATCH,), generator=order).to(split.labels.device)
        yield split.images[index], one_hot[split.labels[index]]


def train(cell: Cell, splits: tuple[Split, Split]) -> Row:
    """Trains a cell's network; every `test_every` iterations its test accuracy and numbers of the batch are recorded.

    These are the loss of the feed-forward pass, the energy after inference (the loss with backpropagation) and, if the
    cell says `conditions`, the condition number of the first sample's activity Hessian before inference. A run that
    learns nothing is stopped.
    """
    images, test = splits
    net = network(cell, images.images.shape[1]).to(images.images.device)
    optimizer = make_optimizer(cell["optimizer"], net, cell["rate"])
    penalties = Penalties(activity_decay=cell["activity_decay"])

    def step(x: Tensor, y: Tensor) -> Tensor:
        if cell["method"] == "bp":
            energy = half_squared_error(net(x), y)
        else:
            settings = {"steps": cell["inference_steps"], "lr": cell["activity_rate"]}
            z = net.infer(x, y, method=cell["activity_optimizer"], penalties=penalties, **settings)
            energy = net.energy(x, y, z, penalties)
        optimizer.zero_grad()
        energy.backward()
        optimizer.step()
        return energy.detach()

    advance = replayed(step, images.images.device)
    row: Row = {"accuracy": [], "loss": [], "energy": [], "condition": []}
    for iteration, (x, y) in zip(range(1, cell["iterations"] + 1), batches(cell, images), strict=False):
        if iteration % cell["test_every"]:
            advance(x, y)
            continue
        with torch.no_grad():
            loss = half_squared_error(net(x), y).item()
        if cell["conditions"] and math.isfinite(loss):
            row["condition"].append(float(condition_number(activity_eigenvalues(net, x[:1], y[:1]))))
        energy = advance(x, y).item()
        if math.isfinite(loss) and math.isfinite(energy):
            row["loss"].append(loss)
            row["energy"].append(energy)
        correct = accuracy(net, test)
        if learned_nothing(loss, correct):
            break
        row["accuracy"].append(correct)
    return row


def activity_eigenvalues(net: PCNetwork, x: Tensor, y: Tensor) -> Tensor:
    """Eigenvalues of the energy's Hessian in the hidden activities of one sample, at the feed-forward state."""
    return hessian_eigenvalues(lambda *z: net.energy(x, y, torch.stack(z)), *net.states(x)[:-1])


def reached(row: Row) -> float:
    """The last accuracy; chance for a run that was stopped."""
    whole = len(row["accuracy"]) == row["iterations"] // row["test_every"]
    return row["accuracy"][-1] if whole else CHANCE


def last_accuracy(rows: list[Row]) -> float:
    """Mean over seeds of the last accuracies; a run that was stopped counts as chance."""
    return sum(map(reached, rows)) / len(rows)


def best(rows: list[Row], *keys: str) -> list[Row]:
    """The seeds of the settings of `keys` with the best `last_accuracy`."""
    settings = {tuple(row[key] for key in keys): None for row in rows}
    choices = [chosen(rows, **dict(zip(keys, values, strict=True))) for values in settings]
    return max(choices, key=last_accuracy)
