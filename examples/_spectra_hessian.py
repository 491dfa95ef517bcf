"""The activity Hessian of predictive coding over width and depth: measured, and for linear networks in closed form."""

from functools import partial

import numpy as np
import torch
from _experiment import Cell, Row, chosen
from _pc_network import PCNetwork
from matplotlib.figure import Figure
from torch import Tensor

from muon_kernels.diagnostics import condition_number, hessian_eigenvalues
from muon_kernels.diagnostics.figures import draw_phase_map, draw_spectrum_slice

THEORY = {"H": "whole Hessian", "D": "its diagonal blocks", "O": "its other blocks"}


def hessian(cell: Cell, device: torch.device) -> Row:
    """Eigenvalues of the energy's Hessian in the hidden activities of one sample, all seeds: orthogonal weights.

    Extremes are means over seeds, condition numbers geometric means. Linear networks have the eigenvalues of the closed
    form's parts as well.
    """
    row: Row = {"eigenvalues": [], "condition": [], "largest": [], "smallest": []}
    row |= {part: [] for part in THEORY} if cell["activation"] == "linear" else {}
    for seed in range(cell["seeds"]):
        n = cell["width"]
        net = PCNetwork(
            n, n, cell["hidden"], n, activation=cell["activation"], parametrisation="orthogonal", skips=False, seed=seed
        ).to(device, torch.float64)
        generator = torch.Generator().manual_seed(seed)
        x = (1 + 0.1 * torch.randn(1, n, dtype=torch.float64, generator=generator)).to(device)
        found = hessian_eigenvalues(partial(_energy, net, x), *net.states(x)[:-1])
        row["eigenvalues"] += _rounded(found)
        row["condition"].append(float(condition_number(found)))
        row["largest"].append(float(found[-1]))
        row["smallest"].append(float(found[0]))
        if cell["activation"] == "linear":
            for part, matrix in zip(THEORY, linear_hessian(net), strict=True):
                row[part] += _rounded(torch.linalg.eigvalsh(matrix))
    row["condition"] = float(np.exp(np.log(row["condition"]).mean()))
    return row | {key: float(np.mean(row[key])) for key in ("largest", "smallest")}


@torch.no_grad()
def linear_hessian(net: PCNetwork) -> tuple[Tensor, Tensor, Tensor]:
    """The activity Hessian of a linear network, its block-diagonal part and the rest, [width * hidden] squared each.

    With M_l the matrix from layer l to the next, scale and skip included, the diagonal block of hidden layer l is
    I + M_l^T M_l, and its block with the next layer -M_l^T.
    """
    width, hidden = net.width, len(net.weights) - 1
    eye = torch.eye(width, dtype=net.weights[0].dtype, device=net.weights[0].device)
    diagonal = eye.new_zeros(width * hidden, width * hidden)
    other = diagonal.clone()
    for layer in range(hidden):
        matrix = net.predict(layer + 1, eye).mT  # rows of the identity in, columns of the matrix out
        here = slice(width * layer, width * (layer + 1))
        above = slice(width * (layer + 1), width * (layer + 2))
        diagonal[here, here] = eye + matrix.mT @ matrix
        if layer + 1 < hidden:
            other[here, above], other[above, here] = -matrix.mT, -matrix
    return diagonal + other, diagonal, other


def draw_slices(rows: list[Row], widths: tuple[int, ...], depths: tuple[int, ...]) -> Figure:
    """Spectra over depth at the largest width, and over width at the largest depth, a row an activation."""
    activations = list(dict.fromkeys(row["activation"] for row in rows))
    figure = Figure(figsize=(11, 3.4 * len(activations)), layout="constrained")
    for line_of_axes, name in zip(figure.subplots(len(activations), 2, squeeze=False), activations, strict=True):
        some = chosen(rows, activation=name)
        _draw_families(line_of_axes, some, "eigenvalues", r"$\lambda(H_z)$", name, widths[-1], depths[-1])
    return figure


def draw_theory(rows: list[Row], widths: tuple[int, ...], depths: tuple[int, ...]) -> Figure:
    """The same slices of the linear network's Hessian in closed form, and of its parts, a row each."""
    figure = Figure(figsize=(11, 3.4 * len(THEORY)), layout="constrained")
    for line_of_axes, (part, name) in zip(figure.subplots(len(THEORY), 2), THEORY.items(), strict=True):
        some = chosen(rows, activation="linear")
        _draw_families(line_of_axes, some, part, rf"$\lambda({part})$", name, widths[-1], depths[-1])
    return figure


def draw_conditions(rows: list[Row], widths: tuple[int, ...], depths: tuple[int, ...]) -> Figure:
    """Condition numbers over width and depth, a panel an activation."""
    activations = list(dict.fromkeys(row["activation"] for row in rows))
    figure = Figure(figsize=(5.2 * len(activations), 4.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(activations), squeeze=False)[0], activations, strict=True):
        table = _table(chosen(rows, activation=name), "condition", widths, depths)
        draw_phase_map(axes, table, widths, depths, label=r"$\kappa(H_z)$", title=name)
    return figure


def draw_extremes(rows: list[Row], widths: tuple[int, ...], depths: tuple[int, ...]) -> Figure:
    """The largest and the smallest eigenvalue over width and depth, a column an activation."""
    activations = list(dict.fromkeys(row["activation"] for row in rows))
    labels = {"largest": r"$\lambda_{max}(H_z)$", "smallest": r"$\lambda_{min}(H_z)$"}
    figure = Figure(figsize=(5.2 * len(activations), 8.2), layout="constrained")
    for line_of_axes, (key, label) in zip(
        figure.subplots(2, len(activations), squeeze=False), labels.items(), strict=True
    ):
        for axes, name in zip(line_of_axes, activations, strict=True):
            table = _table(chosen(rows, activation=name), key, widths, depths)
            draw_phase_map(axes, table, widths, depths, label=label, title=name, log=False)
    return figure


def _energy(net: PCNetwork, x: Tensor, *z: Tensor) -> Tensor:
    return net.energy(x, x, torch.stack(z))


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 5) for value in values.tolist()]


def _table(rows: list[Row], key: str, widths: tuple[int, ...], depths: tuple[int, ...]) -> list[list[float]]:
    return [[chosen(rows, width=w, hidden=h)[0][key] for h in depths] for w in widths]


def _draw_families(
    line_of_axes: np.ndarray, rows: list[Row], key: str, label: str, title: str, width: int, depth: int
) -> None:
    left, right = line_of_axes
    over_depth = {f"$H={row['hidden']}$": row[key] for row in chosen(rows, width=width)}
    over_width = {f"$N={row['width']}$": row[key] for row in chosen(rows, hidden=depth)}
    draw_spectrum_slice(left, over_depth, family="width", x_label=label)
    draw_spectrum_slice(right, over_width, family="depth", x_label=label)
    for axes in line_of_axes:
        axes.set_ylim(min(axes.get_ylim()[0], 1e-2), 1.5)
    left.set_title(f"{title}, width N = {width}")
    right.set_title(f"{title}, depth H = {depth}")
