"""The optimizer's parameters as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .matrices import split


def parameter_table(
    groups: Sequence[dict[str, Any]], scale_of: Callable[[dict[str, Any], Tensor, Sequence[int]], float]
) -> str:
    """Name or number, shape, algorithm, matrices, factor for lr, and the reason if `param_groups_for` left one.

    Args:
        groups: the optimizer's param_groups.
        scale_of: the factor from a group, its parameter and a matrix's shape.
    """
    rows: list[tuple[str, ...]] = [("parameter", "shape", "algorithm", "matrices", "lr scale", "reason")]
    number = 0
    for group in groups:
        names = group.get("param_names") or [None] * len(group["params"])
        reasons = group.get("reasons") or [""] * len(group["params"])
        for name, p, reason in zip(names, group["params"], reasons, strict=True):
            algorithm, matrices, scale = group.get("algorithm", "adamw"), "", "1"
            if group["use_muon"]:
                shapes = [tuple(m.shape) for m in split(p.detach(), group["layout"])]
                scales = sorted({scale_of(group, p, shape) for shape in shapes})
                algorithm = "muon"
                matrices = ", ".join(f"{shapes.count(s)} x {s[0]}x{s[1]}" for s in dict.fromkeys(shapes))
                scale = ", ".join(f"{s:.4g}" for s in scales)
            rows.append((str(name or number), "x".join(map(str, p.shape)), algorithm, matrices, scale, reason))
            number += 1
    if not any("reasons" in group for group in groups):
        rows = [row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
