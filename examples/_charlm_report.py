"""What comes out of the runs: the best learning rates, a table, and the numbers as JSON."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

from _charlm_optimizers import Method
from _charlm_train import Curve
from _command import mean_text

Results = dict[Method, list[Curve]]  # one curve a seed


def final_loss(curves: list[Curve]) -> float:
    """Mean over the seeds of the last validation loss; infinite if one of them diverged."""
    loss = statistics.mean(curve.validation_loss[-1] for curve in curves)
    return loss if math.isfinite(loss) else math.inf


def best_rates(results: Results) -> Results:
    """Of every label the method with the lowest final loss."""
    best: dict[str, Method] = {}
    for method, curves in results.items():
        if method.label not in best or final_loss(curves) < final_loss(results[best[method.label]]):
            best[method.label] = method
    return {method: results[method] for method in best.values()}


def table(results: Results) -> str:
    """A row a method; in a sweep the best of every optimizer is marked, and said to be an end if it is one."""
    seeds = len(next(iter(results.values())))
    best = best_rates(results)
    lines = [f"\nafter the last step, number of seeds: {seeds}"]
    titles = f"{'optimizer':28}{'lr':>9}{'validation, nats/byte':>25}{'seconds':>13}{'in the optimizer':>18}"
    lines.append(f"{titles}{'state, bytes/parameter':>24}")
    for method, curves in results.items():
        loss = mean_text([curve.validation_loss[-1] for curve in curves], 4)
        seconds = mean_text([curve.seconds[-1] for curve in curves], 1)
        line = f"{method.label:28}{method.lr:>9.4g}{loss:>25}{seconds:>13}{optimizer_share(curves):>18.1%}"
        line += f"{curves[-1].state_bytes:>24.2f} "
        rates = [other.lr for other in results if other.label == method.label]
        if method in best and len(rates) > 1:
            line += " best" + (", at an end of the sweep" if method.lr in (min(rates), max(rates)) else "")
        lines.append(line.rstrip())
    return "\n".join(lines)


def optimizer_share(curves: list[Curve]) -> float:
    """Part of the training time, over all seeds, that was spent in the optimizer."""
    return sum(curve.optimizer_seconds[-1] for curve in curves) / sum(curve.seconds[-1] for curve in curves)


def save(results: Results, about: dict[str, Any], path: Path) -> None:
    """Write every curve, under what they have in common."""
    runs = [
        {"optimizer": method.optimizer, "backend": method.backend, "lr": method.lr, "seed": seed, **vars(curve)}
        for method, curves in results.items()
        for seed, curve in enumerate(curves)
    ]
    path.write_text(json.dumps({**about, "runs": runs}, indent=1) + "\n")
