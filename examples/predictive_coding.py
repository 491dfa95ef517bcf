"""Predictive coding with Muon: condition numbers, loss over energy, training, activity decay.

Every figure of the result folder comes from `results.jsonl` there; an interrupted command continues where it stopped.
See docs/predictive_coding.md.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from _experiment import Cell, Experiment, Row, chosen, start
from _mnist_read import Mnist
from _mnist_train import Split, prepare_splits
from _pc_network import PCNetwork, Penalties, half_squared_error
from matplotlib.figure import Figure

from muon_kernels import Muon
from muon_kernels.diagnostics import condition_number, hessian_eigenvalues, learned_nothing, seed_statistics
from muon_kernels.diagnostics.figures import draw_curves, draw_phase_map, line, log_y

CLASSES = 10
CHANCE = 0.1
MAP_INPUTS = 32  # Gaussian, for the maps at the start
OPTIMIZERS = ("Muon", "Adam")
RATES = {"mupc": (0.01, 0.03, 0.1, 0.3), "sp": (1e-3, 3e-3, 0.01)}
"""Weight learning rates that are tried; the figures show the best. Muon's step is scaled by sqrt(max(rows, cols)), so
that with muPC the scaled weight a_l W moves by as much at every width, as it does under Adam."""
INFERENCE_RATE = 0.2  # for each sample's own energy; the largest eigenvalue of its Hessian is about 5 at the start


@dataclass(frozen=True)
class Settings:
    """How large the experiment is."""

    map_widths: tuple[int, ...] = (4, 8, 16, 32, 64)
    map_depths: tuple[int, ...] = (2, 4, 8, 16)
    width: int = 64
    hidden: int = 8
    iterations: int = 100
    test_every: int = 10
    seeds: int = 3
    decays: tuple[float, ...] = (0.1, 0.01, 1e-3, 1e-4, 0.0)
    decay_iterations: int = 30
    decay_steps: tuple[int, ...] = (8, 50)


FULL = Settings(
    (4, 8, 16, 32, 64, 128),
    (2, 4, 8, 16, 32, 64),
    512,
    32,
    938,
    100,
    3,
    (1.0, 0.5, 0.1, 0.05, 0.01, 1e-3, 1e-4, 0.0),
    938,
    (50, 500),
)
NETWORKS = (("sp", False), ("sp", True), ("orthogonal", False), ("mupc", True))  # parametrisation, skips


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    experiment, data = start("predictive_coding", __doc__.splitlines()[0], arguments)
    run(experiment, FULL if experiment.full else Settings(), data)


def run(experiment: Experiment, settings: Settings, data: Mnist) -> None:
    """All measurements, then all figures."""
    splits = prepare_splits(data, experiment.device, torch.float32)
    grid = [(w, h) for w in settings.map_widths for h in settings.map_depths]
    maps = [
        {"part": "start", "parametrisation": p, "skips": skips, "width": w, "hidden": h, "seeds": settings.seeds}
        for p, skips in NETWORKS
        for w, h in grid
    ]
    starts = experiment.measure(maps, partial(at_the_start, device=experiment.device), "networks at their start")
    common = {"part": "training", "width": settings.width, "hidden": settings.hidden, "test_every": settings.test_every}
    trained = [
        common
        | {"parametrisation": p, "skips": skips, "optimizer": o, "activation": "tanh", "activity_decay": 0.0}
        | {"rate": rate, "seed": seed, "iterations": settings.iterations, "inference_steps": settings.hidden}
        for p, skips in (("mupc", True), ("sp", False))
        for o in OPTIMIZERS
        for rate in RATES[p]
        for seed in range(settings.seeds)
    ]
    training = experiment.measure(trained, partial(train, splits=splits), "training")
    decayed = [
        common
        | {"parametrisation": "sp", "skips": False, "optimizer": o, "activation": "linear", "activity_decay": decay}
        | {"rate": 1e-3, "seed": 0, "iterations": settings.decay_iterations, "inference_steps": steps}
        for steps in settings.decay_steps
        for o in OPTIMIZERS
        for decay in settings.decays
    ]
    decays = experiment.measure(decayed, partial(train, splits=splits), "activity decay")
    figures = {
        "condition": draw_maps(starts, settings, "condition", "condition number of the activity Hessian", NETWORKS),
        "ratio": draw_maps(starts, settings, "ratio", "loss / equilibrium energy", (("sp", True), ("mupc", True))),
        "training": draw_training(training),
        "activity_decay": draw_decays(decays, settings),
    }
    experiment.save(figures, dpi=90)


def at_the_start(cell: Cell, device: torch.device) -> Row:
    """Condition number and loss / energy of linear networks on Gaussian inputs, geometric means over seeds."""
    conditions, ratios = [], []
    for seed in range(cell["seeds"]):
        net = PCNetwork(
            MAP_INPUTS,
            cell["width"],
            cell["hidden"],
            CLASSES,
            activation="linear",
            parametrisation=cell["parametrisation"],
            skips=cell["skips"],
            seed=seed,
        ).to(device, torch.float64)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(64, MAP_INPUTS, dtype=torch.float64, generator=generator).to(device)
        y = torch.eye(CLASSES, dtype=torch.float64, device=device)[torch.arange(64) % CLASSES]
        conditions.append(float(condition_number(activity_hessian(net, x[:1], y[:1]))))
        with torch.no_grad():
            ratios.append(float(half_squared_error(net(x), y) / net.equilibrium_energy(x, y)))
    return {"condition": float(np.exp(np.log(conditions).mean())), "ratio": float(np.exp(np.log(ratios).mean()))}


def activity_hessian(net: PCNetwork, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of the energy's Hessian in the hidden activities of one sample, at the feed-forward state."""
    return hessian_eigenvalues(lambda *z: net.energy(x, y, list(z)), *net.states(x)[:-1])


def train(cell: Cell, splits: tuple[Split, Split]) -> Row:
    """Predictive coding on MNIST: test accuracies, losses before and energies after inference, every test_every."""
    train_split, test_split = splits
    device = train_split.images.device
    net = PCNetwork(
        train_split.images.shape[1],
        cell["width"],
        cell["hidden"],
        CLASSES,
        activation=cell["activation"],
        parametrisation=cell["parametrisation"],
        skips=cell["skips"],
        seed=cell["seed"],
    ).to(device)
    if cell["optimizer"] == "Muon":
        optimizer: torch.optim.Optimizer = Muon(net.parameters(), cell["rate"], 0.0, adjust_lr_fn="max_dim")
    else:
        optimizer = torch.optim.Adam(net.parameters(), cell["rate"])
    penalties = Penalties(activity_decay=cell["activity_decay"])
    order = torch.Generator().manual_seed(cell["seed"])
    row: Row = {"accuracy": [], "loss": [], "energy": []}
    for iteration in range(1, cell["iterations"] + 1):
        index = torch.randint(len(train_split.labels), (64,), generator=order).to(device)
        x, y = train_split.images[index], torch.eye(CLASSES, device=device)[train_split.labels[index]]
        z = net.infer(x, y, steps=cell["inference_steps"], lr=INFERENCE_RATE, penalties=penalties)
        optimizer.zero_grad()
        energy = net.energy(x, y, z, penalties)
        energy.backward()
        if iteration % cell["test_every"] == 0:
            with torch.no_grad():
                loss = half_squared_error(net(x), y).item()
        optimizer.step()
        if iteration % cell["test_every"] == 0:
            with torch.no_grad():
                correct = net(test_split.images).argmax(1) == test_split.labels
            accuracy = correct.double().mean().item()
            if learned_nothing(loss, accuracy):
                break
            row["accuracy"].append(accuracy)
            row["loss"].append(loss)
            row["energy"].append(energy.item())
    return row


def draw_maps(
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


def draw_training(rows: list[Row]) -> Figure:
    """Accuracy, loss and energy over iterations at each optimizer's best rate: mean and deviation over seeds."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    titles = {"accuracy": "Test accuracy", "loss": "Loss before inference", "energy": "Energy after inference"}
    for axes, (quantity, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        curves, x, styles = {}, {}, {}
        for parametrisation, dashes in (("mupc", "-"), ("sp", ":")):
            for optimizer in OPTIMIZERS:
                some = best_rate(chosen(rows, parametrisation=parametrisation, optimizer=optimizer))
                empty = CHANCE if quantity == "accuracy" else float("nan")
                label = f"{optimizer}, {parametrisation}, lr {some[0]['rate']:g}"
                curves[label] = seed_statistics([row[quantity] for row in some], empty=empty)
                x[label] = [(t + 1) * some[0]["test_every"] for t in range(len(curves[label][0]))]
                styles[label] = line(optimizer, 0)._replace(dashes=dashes)
        draw_curves(axes, x, curves, styles)
        axes.set(title=title, xlabel="Training iteration")
        if quantity != "accuracy":
            log_y(axes)
    return figure


def best_rate(rows: list[Row]) -> list[Row]:
    """The seeds of the rate with the best mean of last accuracies; a run that was stopped counts as chance."""
    full = max(len(row["accuracy"]) for row in rows)

    def score(rate: float) -> float:
        last = [row["accuracy"][-1] if len(row["accuracy"]) == full else CHANCE for row in chosen(rows, rate=rate)]
        return sum(last) / len(last)

    return chosen(rows, rate=max({row["rate"] for row in rows}, key=score))


def draw_decays(rows: list[Row], settings: Settings) -> Figure:
    """Best accuracy of each run against the activity decay; runs that were stopped at once are at chance."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    positions = range(len(settings.decays))
    curves, styles = {}, {}
    for steps, dashes in zip(settings.decay_steps, (":", "-"), strict=True):
        for optimizer in OPTIMIZERS:
            some = chosen(rows, optimizer=optimizer, inference_steps=steps)
            best = [max(chosen(some, activity_decay=d)[0]["accuracy"], default=CHANCE) for d in settings.decays]
            label = f"{optimizer}, {steps} inference steps"
            curves[label] = (best, np.zeros(len(best)))
            styles[label] = line(optimizer, 0)._replace(dashes=dashes)
    draw_curves(axes, positions, curves, styles)
    axes.set_xticks(positions, [f"{decay:g}" for decay in settings.decays])
    axes.set(xlabel="Activity decay", ylabel="Best test accuracy", title="Linear network, sp, no skips")
    return figure


if __name__ == "__main__":
    main()
