"""Spectra over width, depth and training: activity Hessians, forward passes, and what each optimizer does to weights.

See docs/spectra.md.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from _experiment import Cell, Experiment, Row, chosen, start
from _mnist_read import Mnist
from _mnist_train import Split, prepare_splits
from _pc_network import PCNetwork, half_squared_error
from matplotlib.figure import Figure

from muon_kernels import Muon
from muon_kernels.diagnostics import (
    SpectrumMonitor,
    condition_number,
    hessian_eigenvalues,
    layer_picks,
    spectral_norm,
)
from muon_kernels.diagnostics.figures import (
    LINES,
    Line,
    draw_curves,
    draw_phase_map,
    draw_spectrum_slice,
    log_y,
    powers_of_two,
)

CLASSES = 10
# In the order of drawing: where curves coincide, Muon's is on top.
RATES = {"SGD": 1e-3, "Adam": 1e-3, "Muon": 1e-3}  # of the forward passes, as in the source of this experiment
TRAINED = {"Muon": 0.02, "Adam": 1e-3, "SGD": 0.1}  # of the training run
NETWORKS = {"sp": False, "orthogonal": False, "mupc": True}  # parametrisation -> skips
QUANTITIES = ("weight", "momentum", "update")
STATISTICS = {"spectral_norm": "Spectral norm", "stable_rank": "Stable rank", "condition_number": "Condition number"}


@dataclass(frozen=True)
class Settings:
    """How large the experiment is."""

    hessian_widths: tuple[int, ...] = (2, 4, 8, 16, 32)
    hessian_depths: tuple[int, ...] = (2, 4, 8, 16, 32)
    activations: tuple[str, ...] = ("linear", "tanh", "relu")
    seeds: int = 3
    widths: tuple[int, ...] = (128, 256, 512)
    depth: int = 16
    depths: tuple[int, ...] = (16, 32, 64, 128)
    width: int = 128
    iterations: int = 200
    every: int = 10


FULL = Settings(
    (2, 4, 8, 16, 32, 64, 128),
    (2, 4, 8, 16, 32, 64),
    widths=(128, 256, 512, 1024),
    depths=(16, 32, 64, 128, 256, 512),
    iterations=938,
    every=20,
)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    experiment, data = start("spectra", __doc__.splitlines()[0], arguments)
    run(experiment, FULL if experiment.full else Settings(), data)


def run(experiment: Experiment, settings: Settings, data: Mnist) -> None:
    """All measurements, then all figures."""
    split, _ = prepare_splits(data, experiment.device, torch.float32)
    cells: list[Cell] = [
        {"part": "hessian", "activation": a, "width": w, "hidden": h, "seeds": settings.seeds}
        for a, w, h in product(settings.activations, settings.hessian_widths, settings.hessian_depths)
    ]
    hessians = experiment.measure(cells, partial(hessian, device=experiment.device), "activity Hessians")
    sizes = [(w, settings.depth) for w in settings.widths] + [(settings.width, d) for d in settings.depths]
    cells = [
        {"part": "forward", "parametrisation": p, "optimizer": o, "width": w, "layers": d}
        for p, o, (w, d) in product(NETWORKS, RATES, dict.fromkeys(sizes))
    ]
    forwards = experiment.measure(cells, partial(forward, split=split), "forward passes")
    cells = [
        {"part": "training", "optimizer": o, "iterations": settings.iterations, "every": settings.every}
        for o in TRAINED
    ]
    trained = experiment.measure(cells, partial(train, split=split), "training")
    figures = {
        "hessian_slices": draw_slices(hessians, settings),
        "hessian_condition": draw_conditions(hessians, settings),
        "forward_width": draw_forward(forwards, "width", settings.widths, {"layers": settings.depth}),
        "forward_depth": draw_forward(forwards, "layers", settings.depths, {"width": settings.width}),
        "training": draw_training(trained),
    }
    experiment.save(figures, dpi=80)


def hessian(cell: Cell, device: torch.device) -> Row:
    """Eigenvalues of the energy's Hessian in the hidden activities of one sample, all seeds: orthogonal weights."""
    values, conditions = [], []
    for seed in range(cell["seeds"]):
        n = cell["width"]
        net = PCNetwork(
            n, n, cell["hidden"], n, activation=cell["activation"], parametrisation="orthogonal", skips=False, seed=seed
        ).to(device, torch.float64)
        generator = torch.Generator().manual_seed(seed)
        x = (1 + 0.1 * torch.randn(1, n, dtype=torch.float64, generator=generator)).to(device)
        found = hessian_eigenvalues(partial(_energy, net, x), *net.states(x)[:-1])
        conditions.append(float(condition_number(found)))
        values += found.tolist()
    return {"eigenvalues": [round(v, 5) for v in values], "condition": float(np.exp(np.log(conditions).mean()))}


def _energy(net: PCNetwork, x: torch.Tensor, *z: torch.Tensor) -> torch.Tensor:
    return net.energy(x, x, list(z))


def forward(cell: Cell, split: Split) -> Row:
    """RMS of pre-activations and spectral norms of the weights at a few layers, before and after two steps."""
    net = PCNetwork(
        split.images.shape[1],
        cell["width"],
        cell["layers"] - 1,
        CLASSES,
        activation="relu",
        parametrisation=cell["parametrisation"],
        skips=NETWORKS[cell["parametrisation"]],
        seed=54638,
    ).to(split.images.device)
    optimizer = make_optimizer(cell["optimizer"], net, RATES[cell["optimizer"]])
    picks = layer_picks(cell["layers"])
    row: Row = {"rms": [], "spectral_norm": []}
    for step in range(3):
        x, y = batch(split, step, 64)
        states = net.states(x)
        row["rms"].append([float(states[layer].detach().square().mean().sqrt()) for layer in picks])
        row["spectral_norm"].append([spectral_norm(net.weights[layer]) for layer in picks])
        optimizer.zero_grad()
        half_squared_error(states[-1], y).backward()
        optimizer.step()
    return row


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


def draw_slices(rows: list[Row], settings: Settings) -> Figure:
    """Spectra over depth at the largest width, and over width at the largest depth, a row an activation."""
    width, depth = settings.hessian_widths[-1], settings.hessian_depths[-1]
    figure = Figure(figsize=(11, 3.4 * len(settings.activations)), layout="constrained")
    for (left, right), name in zip(
        figure.subplots(len(settings.activations), 2, squeeze=False), settings.activations, strict=True
    ):
        some = chosen(rows, activation=name)
        over_depth = {f"$H={row['hidden']}$": row["eigenvalues"] for row in chosen(some, width=width)}
        over_width = {f"$N={row['width']}$": row["eigenvalues"] for row in chosen(some, hidden=depth)}
        draw_spectrum_slice(left, over_depth, family="width", x_label=r"$\lambda(H_z)$")
        draw_spectrum_slice(right, over_width, family="depth", x_label=r"$\lambda(H_z)$")
        left.set_title(f"{name}, width N = {width}")
        right.set_title(f"{name}, depth H = {depth}")
    return figure


def draw_conditions(rows: list[Row], settings: Settings) -> Figure:
    """Condition numbers over width and depth, a panel an activation."""
    figure = Figure(figsize=(5.2 * len(settings.activations), 4.2), layout="constrained")
    for axes, name in zip(
        figure.subplots(1, len(settings.activations), squeeze=False)[0], settings.activations, strict=True
    ):
        some = chosen(rows, activation=name)
        table = [
            [chosen(some, width=w, hidden=h)[0]["condition"] for h in settings.hessian_depths]
            for w in settings.hessian_widths
        ]
        label = r"$\kappa(H_z)$"
        draw_phase_map(axes, table, settings.hessian_widths, settings.hessian_depths, label=label, title=name)
    return figure


def draw_forward(rows: list[Row], size: str, values: tuple[int, ...], fixed: dict[str, int]) -> Figure:
    """RMS of the middle pre-activation and spectral norm of its weight against size, a column a parametrisation."""
    figure = Figure(figsize=(13, 7), layout="constrained")
    titles = {"rms": "RMS of pre-activations, ℓ = L/2", "spectral_norm": "Spectral norm of the weight, ℓ = L/2"}
    for line_of_axes, (quantity, title) in zip(figure.subplots(2, len(NETWORKS)), titles.items(), strict=True):
        for axes, parametrisation in zip(line_of_axes, NETWORKS, strict=True):
            curves, styles = {}, {}
            for optimizer in RATES:
                some = chosen(rows, parametrisation=parametrisation, optimizer=optimizer, **fixed)
                for step, label in ((0, "start"), (2, f"{optimizer}, 2 steps")):
                    found = [chosen(some, **{size: v})[0][quantity][step] for v in values]
                    curves[label] = ([x[len(x) // 2] for x in found], np.zeros(len(values)))
                    styles[label] = LINES[optimizer] if step else Line("#000000", "x", ":")
            draw_curves(axes, values, curves, styles)
            powers_of_two(axes, values)
            log_y(axes)
            skips = "with skips" if NETWORKS[parametrisation] else "no skips"
            axes.set(title=f"{parametrisation}, {skips}", xlabel="Width N" if size == "width" else "Depth L")
        line_of_axes[0].set_ylabel(title)
    return figure


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


if __name__ == "__main__":
    main()
