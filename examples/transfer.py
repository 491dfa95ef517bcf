"""Does the best learning rate of a narrow or shallow network serve a wide or deep one? Muon under each lr scale.

See docs/transfer.md.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from _experiment import Experiment, Row, chosen, start
from _mnist_read import Mnist
from _mnist_train import Split, prepare_splits
from _pc_network import PCNetwork, half_squared_error
from _replayed import replayed
from matplotlib.figure import Figure
from torch import Tensor

from muon_kernels import Muon
from muon_kernels.diagnostics.figures import Line, draw_curves, draw_rate_contour, family_colors
from muon_kernels.scaling import RULES

CLASSES = 10
ADAM = "Adam"  # in the place of a scale: torch's Adam, whose lr nothing scales


@dataclass(frozen=True)
class Settings:
    """How large the experiment is: over width at one depth, over depth at one width."""

    widths: tuple[int, ...] = (32, 64, 128, 256)
    hidden: int = 2
    depths: tuple[int, ...] = (2, 4, 8, 16)
    width: int = 64
    rates: tuple[float, ...] = tuple(float(2.0**k) for k in range(-12, 2))
    depth_rates: tuple[float, ...] = tuple(float(2.0**k) for k in range(-12, 0))
    steps: int = 30
    batch: int = 128
    seeds: int = 1


FULL = Settings((64, 128, 256, 512, 1024), 8, (8, 16, 32, 64), 512, steps=300)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    experiment, data = start("transfer", __doc__.splitlines()[0], arguments)
    run(experiment, FULL if experiment.full else Settings(), data)


def run(experiment: Experiment, settings: Settings, data: Mnist) -> None:
    """All measurements, then all figures."""
    split, _ = prepare_splits(data, experiment.device, torch.float32)
    work = partial(train, split=split)
    common = {"steps": settings.steps, "batch": settings.batch}
    seeds = range(settings.seeds)
    width_cells = [
        common
        | {"parametrisation": "sp", "skips": False, "scale": s, "width": w, "hidden": settings.hidden}
        | {"rate": r, "seed": seed}
        for s, w, r, seed in product((*RULES, ADAM), settings.widths, settings.rates, seeds)
    ]
    over_width = experiment.measure(width_cells, work, "over width")
    depth_cells = [
        common
        | {"parametrisation": p, "skips": True, "scale": s, "width": settings.width, "hidden": h}
        | {"rate": r, "seed": seed}
        for (p, s), h, r, seed in product(DEPTH_NETWORKS, settings.depths, settings.depth_rates, seeds)
    ]
    over_depth = experiment.measure(depth_cells, work, "over depth")
    figures = {
        "width": draw_transfer(over_width, "width", [("scale", s, t) for s, t in WIDTH_TITLES.items()], "N"),
        "depth": draw_transfer(over_depth, "hidden", [("parametrisation", p, t) for p, t in DEPTH_TITLES.items()], "H"),
        "contour": draw_contours(over_width, settings),
    }
    experiment.save(figures, dpi=90)
    print(summary(over_width, over_depth))


WIDTH_TITLES = {s: f"Muon, {s}" for s in RULES} | {"spectral_unclamped": "Muon, rms_to_rms", ADAM: "Adam"}
DEPTH_NETWORKS = (("sp", "spectral_unclamped"), ("mupc", "max_dim"))  # parametrisation and Muon's lr scale
DEPTH_TITLES = {"sp": "standard, rms_to_rms", "mupc": "Depth-muP, max_dim"}


def train(cell: Row, split: Split) -> Row:
    """The mean loss over the last fifth of the steps of backpropagation on MNIST; infinity if it is not finite."""
    device = split.images.device
    net = PCNetwork(
        split.images.shape[1],
        cell["width"],
        cell["hidden"],
        CLASSES,
        activation="relu",
        parametrisation=cell["parametrisation"],
        skips=cell["skips"],
        seed=cell["seed"],
    ).to(device)
    optimizer: torch.optim.Optimizer
    if cell["scale"] == ADAM:
        optimizer = torch.optim.Adam(net.parameters(), cell["rate"], capturable=device.type == "cuda")
    else:
        optimizer = Muon(net.parameters(), cell["rate"], 0.0, adjust_lr_fn=cell["scale"])
    one_hot = torch.eye(CLASSES, device=device)

    def step(index: Tensor) -> Tensor:
        loss = half_squared_error(net(split.images[index]), one_hot[split.labels[index]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    order = torch.Generator().manual_seed(cell["seed"])
    batches = torch.randint(len(split.labels), (cell["steps"], cell["batch"]), generator=order).to(device)
    losses = list(map(replayed(step, device), batches))
    last = torch.stack(losses[-max(1, cell["steps"] // 5) :]).mean().item()
    # JSON has no infinity; nothing that learned has such a loss.
    return {"loss": last if math.isfinite(last) else 1e30}


def mean_losses(rows: list[Row], **settings: object) -> dict[float, float]:
    """Rate -> geometric mean of the losses over seeds."""
    some = chosen(rows, **settings)
    rates = sorted({row["rate"] for row in some})
    return {r: float(np.exp(np.mean([math.log(row["loss"]) for row in chosen(some, rate=r)]))) for r in rates}


def draw_transfer(rows: list[Row], size: str, panels: list[tuple[str, str, str]], letter: str) -> Figure:
    """Loss against rate, a curve a size, a panel a scale; the best rate of every size has a cross."""
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.6 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    sizes = sorted({row[size] for row in rows})
    family = "depth" if size == "width" else "width"
    start = max(min(row["loss"] for row in rows), 1e-3)
    for axes, (key, value, title) in zip(grid, panels, strict=False):
        for n, color in zip(sizes, family_colors(len(sizes), family), strict=True):
            losses = mean_losses(rows, **{key: value, size: n})
            x, y = list(losses), np.clip(list(losses.values()), None, 1.0)
            draw_curves(axes, x, {f"${letter}={n}$": (y, np.zeros(len(y)))}, {f"${letter}={n}$": Line(color, ".")})
            best = min(losses, key=losses.__getitem__)
            axes.plot(best, losses[best], "X", color=color, markeredgecolor="k", markersize=10, zorder=3)
        axes.set(title=title, xscale="log", yscale="log", xlabel="Learning rate", ylim=(0.8 * start, 1.1))
        axes.set_xscale("log", base=2)
    for axes in grid[::columns]:
        axes.set_ylabel("Training loss")
    for axes in grid[len(panels) :]:
        axes.axis("off")
    return figure


def draw_contours(rows: list[Row], settings: Settings) -> Figure:
    """Loss over learning rate and width under two scales: a valley that is straight up transfers."""
    figure = Figure(figsize=(10.5, 4), layout="constrained")
    for axes, scale in zip(figure.subplots(1, 2), ("match_rms_adamw", "spectral_unclamped"), strict=True):
        table = [list(mean_losses(rows, scale=scale, width=w).values()) for w in settings.widths]
        table = np.where(np.asarray(table) > 1, np.nan, table)
        draw_rate_contour(axes, table, settings.rates, settings.widths, label="Training loss")
        axes.set_title(WIDTH_TITLES[scale], pad=12)
        axes.set(xlabel="Learning rate", ylabel="Width N")
        axes.set_xticks(settings.rates[::3], [f"$2^{{{round(math.log2(r))}}}$" for r in settings.rates[::3]])
    return figure


def summary(over_width: list[Row], over_depth: list[Row]) -> str:
    """The best learning rate at every size, as a table."""
    lines = []
    for rows, size, key in ((over_width, "width", "scale"), (over_depth, "hidden", "parametrisation")):
        sizes = sorted({row[size] for row in rows})
        lines.append(f"\nbest log2(lr) by {size:8s}" + "".join(f"{n:>8}" for n in sizes))
        for value in dict.fromkeys(row[key] for row in rows):
            losses = [mean_losses(rows, **{key: value, size: n}) for n in sizes]
            best = [math.log2(min(by_rate, key=by_rate.__getitem__)) for by_rate in losses]
            lines.append(f"{value:25s}" + "".join(f"{b:8.0f}" for b in best))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
