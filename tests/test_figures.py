"""Figures: what is drawn, not how it looks, and the golden numbers of the structure gallery."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from muon_kernels.diagnostics.figures import (
    LINES,
    curves,
    draw_rate_contour,
    draw_weight_grid,
    family_colors,
    phase_map,
    powers_of_two,
    projections,
    random_symmetric,
    save,
    save_structure_animation,
    spectrum_slice,
    structure_gallery,
)

GALLERY = json.loads((Path(__file__).parent / "golden" / "structures.json").read_text())["gallery_source004"]


def test_curves_show_means_bands_and_optimizers() -> None:
    mean, std = np.array([1.0, 2.0, 4.0]), np.array([0.1, 0.2, 0.4])
    by_label = {"Muon": (mean, std), "Adam": (mean / 2, 0 * std), "width 8": (mean / 4, std)}
    figure = curves([0, 1, 2], by_label, x_label="step", y_label="loss", yscale="log")
    (axes,) = figure.axes
    drawn = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(drawn["Adam"].get_ydata(), mean / 2)
    assert drawn["Muon"].get_color() == LINES["Muon"].color and drawn["Adam"].get_color() == LINES["Adam"].color
    assert len(axes.collections) == 2, "no band where there is no spread"
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.9) and band[:, 1].max() == pytest.approx(4.4)
    assert axes.get_yscale() == "log" and axes.get_xlabel() == "step"


def test_spectrum_slice_bins_all_values_alike() -> None:
    rng = np.random.default_rng(0)
    figure = spectrum_slice(
        {"H = 2": rng.normal(0, 1, 500), "H = 4": rng.normal(0, 3, 900)}, family="width", x_label="x"
    )
    (axes,) = figure.axes
    bars = [container for container in axes.containers if len(container) == 50]
    assert len(bars) == 2 and axes.get_yscale() == "log"
    for container in bars:
        assert sum(bar.get_height() for bar in container) == pytest.approx(1.0)
    assert [b.get_x() for b in bars[0]] == [b.get_x() for b in bars[1]]
    assert bars[0][0].get_facecolor()[:3] == to_rgba(family_colors(2, "width")[0])[:3]
    with pytest.raises(ValueError, match="finite"):
        spectrum_slice({"a": [1.0, np.nan]}, family="width", x_label="x")
    with pytest.raises(ValueError, match="values for every label"):
        spectrum_slice({"a": []}, family="width", x_label="x")


def test_phase_map_writes_the_cells() -> None:
    table = [[1.0, 20.0, 3e5], [np.nan, 0.5, -1.0]]
    figure = phase_map(table, [2, 4], [8, 16, 32], label="condition")
    axes, bar = figure.axes
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "1", (1, 0): "20", (2, 0): "3e5", (1, 1): "0.5"}
    assert [t.get_text() for t in axes.get_xticklabels()] == ["8", "16", "32"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["2", "4"]
    assert bar.get_ylabel() == "condition" and bar.get_yscale() == "log"
    assert phase_map([[1.0]], [2], [8], label="x", log=False, limits=(0, 2)).axes[0].images[0].get_clim() == (0, 2)
    with pytest.raises(ValueError, match=r"\[1, 3\], got \[2, 3\]"):
        phase_map(table, [2], [8, 16, 32], label="condition")


def test_contour_marks_the_best_rate() -> None:
    axes = Figure().add_subplot()
    table = [[3.0, 2.0, np.nan], [1.0, 0.5, 4.0]]
    draw_rate_contour(axes, table, [0.01, 0.1, 1.0], [1e-3, 1e-2], label="loss")
    (star,) = axes.lines
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (0.1, 1e-2)
    assert axes.get_xscale() == axes.get_yscale() == "log"
    bar = axes.figure.axes[1]
    assert [t.get_text() for t in bar.get_yticklabels()][:: len(bar.get_yticks()) - 1] == ["0.5", "4"]
    with pytest.raises(ValueError, match=r"\[2, 2\], at least 2 x 2, got \[2, 3\]"):
        draw_rate_contour(axes, table, [0.01, 0.1], [1e-3, 1e-2], label="loss")
    with pytest.raises(ValueError, match="positive finite"):
        draw_rate_contour(axes, [[np.nan] * 2] * 2, [0.01, 0.1], [1e-3, 1e-2], label="loss")


def test_weight_grid_needs_as_many_matrices_as_titles() -> None:
    figure = Figure()
    with pytest.raises(ValueError, match="2 matrices each, got 1 for 'Adam'"):
        rows = {"Adam": [np.zeros((2, 2))]}
        draw_weight_grid(figure, figure.add_gridspec()[0], rows, ["a", "b"], limits=(0, 1), ticks=[0, 1])


def test_axes_of_powers_and_formats(tmp_path: Path) -> None:
    figure = Figure()
    axes = figure.add_subplot()
    powers_of_two(axes, [2, 8, 12])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["$2^{1}$", "$2^{3}$", "12"]
    heads = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xm"}
    for ending, head in heads.items():
        assert save(figure, tmp_path / "new" / f"f{ending}").read_bytes()[:4] == head
    with pytest.raises(ValueError, match=r"\.png, \.pdf, \.svg, got 'f\.jpg'"):
        save(figure, tmp_path / "f.jpg")


def test_gallery_has_the_golden_frames() -> None:
    torch.manual_seed(0)
    first = random_symmetric(GALLERY["basic"]["dim"])
    torch.testing.assert_close(first, torch.tensor(GALLERY["basic"]["dense"]))
    diagonal = torch.tensor(GALLERY["basic"]["diagonal_to_dense_diag"])
    torch.testing.assert_close(projections(first)["diagonal"], torch.diag(diagonal))
    for frame in GALLERY["frames"]:
        shown = projections(random_symmetric(frame["dim"]))
        everything = torch.stack(list(shown.values()))
        assert everything.min().item() == pytest.approx(frame["vmin"], abs=1e-5)
        assert everything.max().item() == pytest.approx(frame["vmax"], rel=1e-5)
        for name, matrix in shown.items():
            assert torch.linalg.vector_norm(matrix).item() == pytest.approx(frame["frobenius"][name], rel=1e-5)
            assert int(matrix.count_nonzero()) == frame["nonzeros"][name]
            assert matrix.sum().item() == pytest.approx(frame["sum"][name], rel=1e-5)


def test_gallery_shares_one_scale_and_moves(tmp_path: Path) -> None:
    matrix = random_symmetric(40)
    figure = structure_gallery(matrix, ["original", "diagonal"])
    assert [axes.get_title() for axes in figure.axes] == ["Original (D = 40)", "Diagonal (D = 40)"]
    for axes, shown in zip(figure.axes, (matrix, torch.diag(matrix.diagonal())), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), shown.numpy())
        assert axes.images[0].get_clim() == (0.0, matrix.max().item())
    with Image.open(save_structure_animation(tmp_path / "new" / "s.gif", dims=(2, 4))) as animation:
        assert animation.n_frames == 2 and animation.info["duration"] == 1000
        frames = []
        for number in range(2):
            animation.seek(number)
            frames.append(np.asarray(animation.convert("RGB")))
    assert (frames[0] != frames[1]).mean() > 0.1
    with pytest.raises(ValueError, match=r"\.gif, got 's\.png'"):
        save_structure_animation(tmp_path / "s.png")
