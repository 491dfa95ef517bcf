"""Forward passes over width and depth: sizes of pre-activations and spectral norms, before and after steps."""

import numpy as np
from _experiment import Cell, Row, chosen
from _mnist_train import Split
from _pc_network import PCNetwork, half_squared_error
from _spectra_training import CLASSES, batch, make_optimizer
from matplotlib.figure import Figure
from torch import Tensor

from muon_kernels.diagnostics import layer_picks, spectral_norm
from muon_kernels.diagnostics.figures import LINES, Line, draw_curves, family_colors, log_y, powers_of_two

# In the order of drawing: where curves coincide, Muon's is on top. The rate is that of the source of this experiment.
OPTIMIZERS = ("SGD", "Adam", "Muon")
RATE = 1e-3
STEPS = 2
QUANTITIES = {"mean_abs": "Mean |pre-activation|", "rms": "RMS of pre-activations", "spectral_norm": "Spectral norm"}
LAYERS = ("1", "L/4", "L/2", "3L/4", "L")


def forward(cell: Cell, split: Split) -> Row:
    """Every quantity at a few layers before training and after each step: quantity -> [steps + 1][layers].

    What is not finite is None: under sp with skips, activations grow with every layer, and a deep network overflows.
    """
    net = PCNetwork(
        split.images.shape[1],
        cell["width"],
        cell["layers"] - 1,
        CLASSES,
        activation="relu",
        parametrisation=cell["parametrisation"],
        skips=cell["skips"],
        seed=54638,
    ).to(split.images.device)
    optimizer = make_optimizer(cell["optimizer"], net, RATE)
    picks = layer_picks(cell["layers"])
    row: Row = {quantity: [] for quantity in QUANTITIES}
    for step in range(STEPS + 1):
        x, y = batch(split, step, 64)
        states = net.states(x)
        picked = [states[layer].detach().double() for layer in picks]  # squares of vanishing ones underflow in float32
        weights = [net.weights[layer].detach() for layer in picks]
        row["mean_abs"].append([_number(z.abs().mean()) for z in picked])
        row["rms"].append([_number(z.square().mean().sqrt()) for z in picked])
        row["spectral_norm"].append([spectral_norm(w) if w.isfinite().all() else None for w in weights])
        optimizer.zero_grad()
        half_squared_error(states[-1], y).backward()
        optimizer.step()
    return row


def draw_middle(rows: list[Row], size: str, values: tuple[int, ...], fixed: dict[str, int]) -> Figure:
    """Every quantity at the middle layer against size, before and after the steps: a column a network."""
    networks = _networks(rows)
    figure = Figure(figsize=(3.6 * len(networks), 3.4 * len(QUANTITIES)), layout="constrained")
    for line_of_axes, (quantity, title) in zip(
        figure.subplots(3, len(networks), squeeze=False), QUANTITIES.items(), strict=True
    ):
        for axes, (parametrisation, skips) in zip(line_of_axes, networks, strict=True):
            curves, styles = {}, {}
            for optimizer in OPTIMIZERS:
                some = chosen(rows, parametrisation=parametrisation, skips=skips, optimizer=optimizer, **fixed)
                for step, label in ((0, "start"), (STEPS, f"{optimizer}, {STEPS} steps")):
                    found = [chosen(some, **{size: v})[0][quantity][step] for v in values]
                    middle = np.array([x[len(x) // 2] for x in found], dtype=float)
                    curves[label] = (middle, np.zeros(len(values)))
                    styles[label] = LINES[optimizer] if step else Line("#000000", "x", ":")
            draw_curves(axes, values, curves, styles)
            axes.get_legend().remove()
            powers_of_two(axes, values)
            log_y(axes)
            axes.set(title=_name(parametrisation, skips), xlabel="Width N" if size == "width" else "Depth L")
        line_of_axes[0].set_ylabel(f"{title}, ℓ = L/2")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(curves))
    return figure


def draw_layers(rows: list[Row], widths: tuple[int, ...], layers: int) -> Figure:
    """RMS of pre-activations of five layers against width: at the start, after steps of Adam, after steps of Muon."""
    stages = {"start": ("Muon", 0), "Adam, 2 steps": ("Adam", STEPS), "Muon, 2 steps": ("Muon", STEPS)}
    networks = _networks(rows)
    figure = Figure(figsize=(3.6 * len(networks), 3.4 * len(stages)), layout="constrained")
    grid = figure.subplots(len(stages), len(networks), squeeze=False, sharey="col")
    for line_of_axes, (stage, (optimizer, step)) in zip(grid, stages.items(), strict=True):
        for axes, (parametrisation, skips) in zip(line_of_axes, networks, strict=True):
            some = chosen(rows, parametrisation=parametrisation, skips=skips, optimizer=optimizer, layers=layers)
            found = [chosen(some, width=w)[0]["rms"][step] for w in widths]
            names = LAYERS if len(found[0]) == len(LAYERS) else [str(layer + 1) for layer in layer_picks(layers)]
            table = np.array(found, dtype=float)
            curves = {f"ℓ = {name}": (table[:, i], np.zeros(len(widths))) for i, name in enumerate(names)}
            colors = family_colors(len(curves), "depth")
            draw_curves(axes, widths, curves, {k: Line(c) for k, c in zip(curves, colors, strict=True)})
            axes.get_legend().remove()
            powers_of_two(axes, widths)
            axes.set(title=_name(parametrisation, skips), xlabel="Width N")
        line_of_axes[0].set_ylabel(f"RMS, {stage}")
    for axes in grid[0]:
        log_y(axes)  # after all stages are drawn: they share the axis
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(curves))
    return figure


def _networks(rows: list[Row]) -> list[tuple[str, bool]]:
    return list(dict.fromkeys((row["parametrisation"], row["skips"]) for row in rows))


def _number(value: Tensor) -> float | None:
    return float(value) if value.isfinite() else None


def _name(parametrisation: str, skips: bool) -> str:
    return f"{parametrisation}, {'with skips' if skips else 'no skips'}"
