"""Spectra over width, depth and training: activity Hessians, forward passes, and what each optimizer does to weights.

See docs/spectra.md.
"""

from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from _experiment import Cell, Experiment, start
from _mnist_read import Mnist
from _mnist_train import prepare_splits
from _spectra_forward import OPTIMIZERS, draw_layers, draw_middle, forward
from _spectra_hessian import draw_conditions, draw_extremes, draw_slices, draw_theory, hessian
from _spectra_training import TRAINED, draw_training, train


@dataclass(frozen=True)
class Settings:
    """How large the experiment is."""

    hessian_widths: tuple[int, ...] = (2, 4, 8, 16, 32)
    hessian_depths: tuple[int, ...] = (2, 4, 8, 16, 32)
    activations: tuple[str, ...] = ("linear", "tanh", "relu")
    seeds: int = 3
    networks: tuple[tuple[str, bool], ...] = (  # parametrisation and skips, of the forward passes
        ("sp", False),
        ("sp", True),
        ("orthogonal", False),
        ("mupc", False),
        ("mupc", True),
    )
    widths: tuple[int, ...] = (128, 256, 512)
    depth: int = 16
    depths: tuple[int, ...] = (16, 32, 64, 128)
    depth_widths: tuple[int, ...] = (128,)
    iterations: int = 200
    every: int = 10


FULL = Settings(
    (2, 4, 8, 16, 32, 64, 128),
    (2, 4, 8, 16, 32, 64),
    widths=(128, 256, 512, 1024),
    depths=(16, 32, 64, 128, 256, 512),
    depth_widths=(128, 1024),
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
    sizes = settings.hessian_widths, settings.hessian_depths
    cells: list[Cell] = [
        {"part": "hessian", "activation": a, "width": w, "hidden": h, "seeds": settings.seeds}
        for a, w, h in product(settings.activations, *sizes)
    ]
    hessians = experiment.measure(cells, partial(hessian, device=experiment.device), "activity Hessians")
    shapes = [(w, settings.depth) for w in settings.widths] + list(product(settings.depth_widths, settings.depths))
    cells = [
        {"part": "forward", "parametrisation": p, "skips": skips, "optimizer": o, "width": w, "layers": d}
        for (p, skips), o, (w, d) in product(settings.networks, OPTIMIZERS, dict.fromkeys(shapes))
    ]
    forwards = experiment.measure(cells, partial(forward, split=split), "forward passes")
    cells = [
        {"part": "training", "optimizer": o, "iterations": settings.iterations, "every": settings.every}
        for o in TRAINED
    ]
    trained = experiment.measure(cells, partial(train, split=split), "training")
    figures = {
        "hessian_slices": draw_slices(hessians, *sizes),
        "hessian_theory": draw_theory(hessians, *sizes),
        "hessian_condition": draw_conditions(hessians, *sizes),
        "hessian_extremes": draw_extremes(hessians, *sizes),
        "forward_width": draw_middle(forwards, "width", settings.widths, {"layers": settings.depth}),
        "forward_layers": draw_layers(forwards, settings.widths, settings.depth),
        "training": draw_training(trained),
    }
    for width in settings.depth_widths:
        figures[f"forward_depth_{width}"] = draw_middle(forwards, "layers", settings.depths, {"width": width})
    experiment.save(figures, dpi=80)


if __name__ == "__main__":
    main()
