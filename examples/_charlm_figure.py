"""The figure: validation loss over the bytes that were read, and over the seconds that it took to train on them."""

from itertools import cycle
from pathlib import Path

import numpy as np
from _charlm_report import Results, optimizer_share
from _curves import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, draw_mean
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

STYLES = {"Muon": VERMILION, "AdamW": BLUE, "torch.optim.Muon": GREEN}
MORE_STYLES = (PURPLE, ORANGE, SKY)  # for Muon on backends asked for by name


def draw(results: Results, title: str, path: Path) -> None:
    """Write the figure; every method is a curve, of its seeds' mean."""
    figure = Figure(figsize=(14, 6), layout="constrained")
    figure.suptitle(title, fontsize=15)
    over_tokens, over_seconds = figure.subplots(1, 2, sharey=True)
    more = cycle(MORE_STYLES)
    for method, curves in results.items():
        style = STYLES.get(method.label) or next(more)
        label = f"{method.label}, lr {method.lr:.4g}"
        # The untrained model would stretch the axis to 5.5 nats.
        losses = [curve.validation_loss[1:] for curve in curves]
        seconds = np.mean([curve.seconds[1:] for curve in curves], axis=0)
        draw_mean(over_tokens, curves[0].tokens[1:], losses, style, label)
        draw_mean(over_seconds, seconds, losses, style, f"{label}: {optimizer_share(curves):.0%} in the optimizer")
    over_tokens.set_ylabel("Validation loss (nats/byte)", fontsize=13)
    over_tokens.set_xlabel("Training bytes read", fontsize=13)
    over_tokens.xaxis.set_major_formatter(EngFormatter())
    over_seconds.set_xlabel("Seconds of training", fontsize=13)
    for axes in (over_tokens, over_seconds):
        axes.set_xlim(left=0)
        axes.tick_params(labelsize=11)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
