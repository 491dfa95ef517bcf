"""Spectra of weight, momentum and update of a small network while each optimizer trains it."""

import math

import numpy as np
import torch
from _experiment import Cell, Row
from _mnist_train import Split
from _pc_network import half_squared_error
from matplotlib.figure import Figure

from muon_kernels import Muon
from muon_kernels.diagnostics import SpectrumMonitor
from muon_kernels.diagnostics.figures import draw_curves, log_y

CLASSES = 10
TRAINED = {"Muon": 0.02, "Adam": 1e-3, "SGD": 0.1}  # optimizer -> learning rate
QUANTITIES = ("weight", "momentum", "update")
STATISTICS = {"spectral_norm": "Spectral norm", "stable_rank": "Stable rank", "condition_number": "Condition number"}


def train(cell: Cell, split: Split) -> Row:
    """Spectra of the second of three matrices of an MLP 784-128-128-10, and the loss, over training on MNIST."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(784, 128, bias=False),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 128, bias=False),
        torch.nn.ReLU(),
        torch.nn.Linear(128, CLASSES, bias=False),
    ).to(split.images.device)
    optimizer = make_optimizer(cell["optimizer"], net, TRAINED[cell["optimizer"]])
    monitor = SpectrumMonitor(optimizer, every=cell["every"], method="svd")
    row: Row = {"step": [], "loss": []} | {f"{q} {s}": [] for q in QUANTITIES for s in STATISTICS}
    for step in range(1, cell["iterations"] + 1):
        x, y = batch(split, step, 128)
        loss = half_squared_error(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % cell["every"] == 0:
            row["step"].append(step)
            row["loss"].append(loss.item())
            for record in monitor.records:
                if record["parameter"] == "1":
                    for statistic in STATISTICS:
                        value = float(record[statistic])
                        # None: a singular matrix has no condition number to draw.
                        row[f"{record['quantity']} {statistic}"].append(value if math.isfinite(value) else None)
    monitor.close()
    return row


def make_optimizer(name: str, net: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
    """Muon, Adam, or SGD with momentum 0.9, none with weight decay."""
    if name == "Muon":
        return Muon(net.parameters(), rate, 0.0, adjust_lr_fn="spectral_unclamped")
    return torch.optim.Adam(net.parameters(), rate) if name == "Adam" else torch.optim.SGD(net.parameters(), rate, 0.9)


def batch(split: Split, number: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A random batch of images and one-hot labels, the same for every run."""
    index = torch.randint(len(split.labels), (size,), generator=torch.Generator().manual_seed(number))
    index = index.to(split.labels.device)
    return split.images[index], torch.eye(CLASSES, device=index.device)[split.labels[index]]


def draw_training(rows: list[Row]) -> Figure:
    """Spectra of weight, momentum and update over training, and the loss."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    grid = figure.subplots(len(QUANTITIES), len(STATISTICS) + 1)
    for line_of_axes, quantity in zip(grid, QUANTITIES, strict=True):
        for axes, (statistic, title) in zip(line_of_axes, STATISTICS.items(), strict=False):
            curves = {row["optimizer"]: row[f"{quantity} {statistic}"] for row in rows}
            draw_curves(
                axes, rows[0]["step"], {o: (np.array(y, float), np.zeros(len(y))) for o, y in curves.items() if y}
            )
            axes.set_title(f"{title}, {quantity}")
            log_y(axes)
            axes.get_legend().remove()
        line_of_axes[-1].axis("off")
    loss = grid[0][-1]
    loss.axis("on")
    draw_curves(loss, rows[0]["step"], {row["optimizer"]: (row["loss"], np.zeros(len(row["loss"]))) for row in rows})
    loss.set_title("Training loss")
    log_y(loss)
    for axes in grid[-1]:
        axes.set_xlabel("Training iteration")
    return figure
