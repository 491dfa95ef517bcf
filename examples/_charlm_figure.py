"""The figure: validation loss over the bytes that were read, and over the seconds that it took to train on them."""

from pathlib import Path

import numpy as np
from _charlm_report import Results, optimizer_share
from _command import mean_std
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from muon_kernels.diagnostics.figures import CYCLE, LINES, draw_curves, save

STYLES = {"Muon": LINES["Muon"], "AdamW": LINES["AdamW"], "torch.optim.Muon": CYCLE[2]}


def draw(results: Results, title: str, path: Path) -> None:
    """Write the figure; every method is a curve, of its seeds' mean."""
    figure = Figure(figsize=(14, 6), layout="constrained")
    figure.suptitle(title, fontsize=15)
    over_tokens, over_seconds = figure.subplots(1, 2, sharey=True)
    for position, (method, curves) in enumerate(results.items()):
        style = STYLES.get(method.label) or CYCLE[3 + position % (len(CYCLE) - 3)]
        label = f"{method.label}, lr {method.lr:.4g}"
        # The untrained model would stretch the axis to 5.5 nats.
        curve = mean_std(np.array([curve.validation_loss[1:] for curve in curves]))
        seconds = np.mean([curve.seconds[1:] for curve in curves], axis=0)
        timed = f"{label}: {optimizer_share(curves):.0%} in the optimizer"
        draw_curves(over_tokens, curves[0].tokens[1:], {label: curve}, {label: style})
        draw_curves(over_seconds, seconds, {timed: curve}, {timed: style})
    over_tokens.set_ylabel("Validation loss (nats/byte)", fontsize=13)
    over_tokens.set_xlabel("Training bytes read", fontsize=13)
    over_tokens.xaxis.set_major_formatter(EngFormatter())
    over_seconds.set_xlabel("Seconds of training", fontsize=13)
    for axes in (over_tokens, over_seconds):
        axes.set_xlim(left=0)
        axes.tick_params(labelsize=11)
        axes.legend(fontsize=11)
    save(figure, path, dpi=100)
