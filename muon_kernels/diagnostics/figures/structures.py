"""What each structure keeps of a symmetric matrix: pictures, and an animation over the size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure
from torch import Tensor

from ...structures import SUPPORTED_STRUCTURES

DIMS = (2, 4, 8, 16, 32, 64, 128)
COLUMNS = 3


def random_symmetric(dim: int, generator: torch.Generator | None = None) -> Tensor:
    """(R + R^T) / 2 for R [dim, dim] uniform in [0, 1)."""
    r = torch.rand(dim, dim, generator=generator)
    return (r + r.mT) / 2


def projections(matrix: Tensor) -> dict[str, Tensor]:
    """ "original", then each supported structure's name -> the dense form of what it keeps."""
    kept = {name: cls.from_dense(matrix).to_dense() for name, cls in SUPPORTED_STRUCTURES.items()}
    return {"original": matrix} | kept


def structure_gallery(matrix: Tensor, names: Sequence[str] | None = None) -> Figure:
    """A matrix [D, D] and its structures in one colour scale, three in a row.

    Args:
        names: which of `projections`; default: all.
    """
    shown = projections(matrix)
    shown = {name: shown[name] for name in names or shown}
    columns = min(COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.75 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    low, high = (float(f(torch.stack(list(shown.values())))) for f in (torch.min, torch.max))
    for axes in grid:
        axes.axis("off")
    for axes, (name, kept) in zip(grid, shown.items(), strict=False):
        axes.imshow(kept.numpy(), vmin=low, vmax=high, interpolation="nearest")
        axes.set_title(f"{name.capitalize()} (D = {len(kept)})", fontsize=11)
    return figure


def save_structure_animation(path: str | Path, dims: Sequence[int] = DIMS, seed: int = 0) -> Path:
    """A GIF that shows `structure_gallery` of random matrices of growing size, one second each.

    Raises:
        ValueError: a path that does not end in .gif.
    """
    path = Path(path)
    if path.suffix != ".gif":
        raise ValueError(f"path must end in .gif, got {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    frames = [projections(random_symmetric(dim, generator)) for dim in dims]
    figure = structure_gallery(frames[0]["original"])

    def draw(shown: dict[str, Tensor]) -> list[object]:
        low, high = (float(f(torch.stack(list(shown.values())))) for f in (torch.min, torch.max))
        artists: list[object] = []
        for axes, (name, kept) in zip(figure.axes, shown.items(), strict=False):
            axes.images[0].set(data=kept.numpy(), clim=(low, high))
            axes.set_title(f"{name.capitalize()} (D = {len(kept)})", fontsize=11)
            artists.append(axes.images[0])
        return artists

    FuncAnimation(figure, draw, frames).save(path, PillowWriter(fps=1), dpi=50)  # type: ignore[arg-type]
    return path
