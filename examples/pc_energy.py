"""The energy of predictive coding: its conditioning, and how far from the loss it is, at the start and over training.

See docs/pc_energy.md.
"""

from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from _experiment import Cell, Experiment, Row, chosen, start
from _mnist_read import Mnist
from _mnist_train import Split, prepare_splits
from _pc_network import half_squared_error
from _pc_train import CLASSES, OPTIMIZERS, activity_eigenvalues, batches, make_optimizer, network
from matplotlib.figure import Figure

from muon_kernels.diagnostics import condition_number
from muon_kernels.diagnostics.figures import Line, draw_curves, draw_phase_map, family_colors, log_y

MAP_INPUTS = 32  # Gaussian, for the maps at the start
NETWORKS = (("sp", False), ("sp", True), ("orthogonal", False), ("mupc", True))  # parametrisation, skips
RATES = {"sp": 1e-4, "mupc": 0.1}  # of the runs over training, as in the source of this experiment
RATIO = "loss / equilibrium energy"


@dataclass(frozen=True)
class Settings:
    """How large the experiment is."""

    map_widths: tuple[int, ...] = (4, 8, 16, 32, 64)
    map_depths: tuple[int, ...] = (2, 4, 8, 16)
    seeds: int = 3
    widths: tuple[int, ...] = (2, 8, 32, 128)
    depths: tuple[int, ...] = (1, 2, 4, 8)
    depth: int = 4  # of the curves over training
    times: tuple[int, ...] = (0, 10, 50, 100)


FULL = Settings(
    (4, 8, 16, 32, 64, 128),
    (2, 4, 8, 16, 32, 64),
    widths=(2, 8, 32, 128, 512),
    depths=(1, 2, 4, 8, 16, 32, 64),
    times=(0, 10, 100, 937),
)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    experiment, data = start("pc_energy", __doc__.splitlines()[0], arguments)
    run(experiment, FULL if experiment.full else Settings(), data)


def run(experiment: Experiment, settings: Settings, data: Mnist) -> None:
    """All measurements, then all figures."""
    split, _ = prepare_splits(data, experiment.device, torch.float32)
    cells: list[Cell] = [
        {"part": "start", "parametrisation": p, "skips": skips, "width": w, "hidden": h, "seeds": settings.seeds}
        for (p, skips), w, h in product(NETWORKS, settings.map_widths, settings.map_depths)
    ]
    starts = experiment.measure(cells, partial(at_the_start, device=experiment.device), "networks at their start")
    cells = [
        {"part": "training", "parametrisation": p, "rate": rate, "optimizer": o, "width": w, "hidden": h}
        | {"iterations": settings.times[-1], "activation": "linear", "skips": True, "seed": 0}
        for (p, rate), o, w, h in product(RATES.items(), OPTIMIZERS, settings.widths, settings.depths)
    ]
    trained = experiment.measure(cells, partial(train, split=split), "training")
    figures = {
        "condition": draw_starts(starts, settings, "condition", "condition number of the activity Hessian", NETWORKS),
        "ratio": draw_starts(starts, settings, "ratio", RATIO, (("sp", True), ("mupc", True))),
        "ratio_training": draw_ratios(trained, settings),
        "training": draw_training(trained, settings),
    }
    experiment.save(figures, dpi=80)


def at_the_start(cell: Cell, device: torch.device) -> Row:
    """Condition number and loss / energy of linear networks on Gaussian inputs, geometric means over seeds."""
    conditions, ratios = [], []
    for seed in range(cell["seeds"]):
        net = network(cell | {"activation": "linear", "seed": seed}, MAP_INPUTS).to(device, torch.float64)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(64, MAP_INPUTS, dtype=torch.float64, generator=generator).to(device)
        y = torch.eye(CLASSES, dtype=torch.float64, device=device)[torch.arange(64) % CLASSES]
        conditions.append(float(condition_number(activity_eigenvalues(net, x[:1], y[:1]))))
        with torch.no_grad():
            ratios.append(float(half_squared_error(net(x), y) / net.equilibrium_energy(x, y)))
    return {"condition": float(np.exp(np.log(conditions).mean())), "ratio": float(np.exp(np.log(ratios).mean()))}


def train(cell: Cell, split: Split) -> Row:
    """Loss and equilibrium energy of every batch of a linear network before it is stepped down that energy."""
    net = network(cell, split.images.shape[1]).to(split.images.device)
    optimizer = make_optimizer(cell["optimizer"], net, cell["rate"])
    losses, energies = [], []
    for _, (x, y) in zip(range(cell["iterations"] + 1), batches(cell, split), strict=False):
        energy = net.equilibrium_energy(x, y)
        optimizer.zero_grad()
        energy.backward()
        with torch.no_grad():
            losses.append(half_squared_error(net(x), y))
        energies.append(energy.detach())
        optimizer.step()
    # JSON has no infinity and no NaN: a run that diverged ends with its last finite batch.
    table = torch.stack([torch.stack(losses), torch.stack(energies)])
    finite = int(table.isfinite().all(0).cumprod(0).sum())
    loss, energy = table[:, :finite].tolist()
    return {"loss": loss, "energy": energy}


def draw_starts(
    rows: list[Row], settings: Settings, quantity: str, label: str, networks: tuple[tuple[str, bool], ...]
) -> Figure:
    """One phase map a network, in one colour scale."""
    shown = [row for row in rows if (row["parametrisation"], row["skips"]) in networks]
    limits = (min(row[quantity] for row in shown), max(row[quantity] for row in shown))
    lines = -(-len(networks) // 2)
    figure = Figure(figsize=(11, 4.2 * lines), layout="constrained")
    panels = figure.subplots(lines, 2).flatten()
    for axes, (parametrisation, skips) in zip(panels, networks, strict=True):
        some = chosen(rows, parametrisation=parametrisation, skips=skips)
        table = [
            [chosen(some, width=w, hidden=h)[0][quantity] for h in settings.map_depths] for w in settings.map_widths
        ]
        title = f"{parametrisation}, {'skips' if skips else 'no skips'}"
        draw_phase_map(axes, table, settings.map_widths, settings.map_depths, label=label, title=title, limits=limits)
    return figure


def draw_ratios(rows: list[Row], settings: Settings) -> Figure:
    """Phase maps of loss / energy, a row a parametrisation and optimizer, a column a time."""
    kinds = list(product(RATES, OPTIMIZERS))
    figure = Figure(figsize=(4.6 * len(settings.times), 3.9 * len(kinds)), layout="constrained")
    ratios = [ratio(row, t) for row in rows for t in settings.times]
    limits = (1.0, float(np.nanmax(ratios)))
    for line_of_axes, (parametrisation, optimizer) in zip(
        figure.subplots(len(kinds), len(settings.times), squeeze=False), kinds, strict=True
    ):
        some = chosen(rows, parametrisation=parametrisation, optimizer=optimizer)
        for axes, t in zip(line_of_axes, settings.times, strict=True):
            table = [[ratio(chosen(some, width=w, hidden=h)[0], t) for h in settings.depths] for w in settings.widths]
            title = f"{parametrisation}, {optimizer}, t = {t}"
            draw_phase_map(axes, table, settings.widths, settings.depths, label=RATIO, title=title, limits=limits)
    return figure


def ratio(row: Row, t: int) -> float:
    """Loss over equilibrium energy at iteration t; NaN if the run had diverged."""
    return row["loss"][t] / row["energy"][t] if t < len(row["loss"]) else float("nan")


def draw_training(rows: list[Row], settings: Settings) -> Figure:
    """Equilibrium energies with the widest network's loss, losses, and ratios over training at one depth, by width."""
    kinds = list(product(RATES, OPTIMIZERS))
    figure = Figure(figsize=(14, 3.6 * len(kinds)), layout="constrained")
    colors = dict(zip(settings.widths, family_colors(len(settings.widths), "depth"), strict=True))
    for line_of_axes, (parametrisation, optimizer) in zip(figure.subplots(len(kinds), 3), kinds, strict=True):
        some = chosen(rows, parametrisation=parametrisation, optimizer=optimizer, hidden=settings.depth)
        for axes, quantity in zip(line_of_axes, ("Equilibrium energy", "Loss", "Loss / energy"), strict=True):
            curves, styles = {}, {}
            for row in some:
                label = f"$N={row['width']}$"
                loss, energy = np.array(row["loss"]), np.array(row["energy"])
                values = {"Equilibrium energy": energy, "Loss": loss, "Loss / energy": loss / energy}[quantity]
                curves[label] = (values, np.zeros(len(values)))
                styles[label] = Line(colors[row["width"]], "")
            if quantity == "Equilibrium energy":
                curves["loss, widest"] = (loss, np.zeros(len(loss)))
                styles["loss, widest"] = Line("#000000", "", "--")
            draw_curves(axes, {k: range(len(v[0])) for k, v in curves.items()}, curves, styles)
            log_y(axes)
            axes.set(title=f"{quantity}: {parametrisation}, {optimizer}, H = {settings.depth}", xlabel="Iteration")
            axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
