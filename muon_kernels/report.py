"""The optimizer's parameters as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .distributed.dtensors import is_dtensor
from .matrices import Layout, split

ScaleOf = Callable[[dict[str, Any], Tensor, Layout, Sequence[int]], float]


def parameter_table(
    groups: Sequence[dict[str, Any]],
    scale_of: ScaleOf,
    shared: Mapping[Tensor, tuple[str, str, str]],
) -> str:
    """Name or number, shape, algorithm, matrices, factor for lr; the reason if `param_groups_for` left one; where a
    parameter lies, who computes it and the KiB sent, if ranks share some.

    Args:
        groups: the optimizer's param_groups.
        scale_of: the factor from a group, its parameter, a layout and a matrix's shape.
        shared: the last three columns of the parameters that several ranks hold.
    """
    has_reasons = any("reasons" in group for group in groups)
    titles = ("lies", "computed by", "KiB sent") if shared else ()
    rows = [("parameter", "shape", "algorithm", "matrices", "lr scale", *(["reason"] if has_reasons else []), *titles)]
    number = 0
    for group in groups:
        names = group.get("param_names") or [None] * len(group["params"])
        reasons = group.get("reasons") or [""] * len(group["params"])
        for name, p, reason in zip(names, group["params"], reasons, strict=True):
            algorithm, matrices, scale = group.get("algorithm", "adamw"), "", "1"
            if group["use_muon"]:
                like = torch.empty(p.shape, device="meta") if is_dtensor(p) or p in shared else p.detach()
                algorithm = "muon"
                matrices, scale = _matrices(group, p, like, group["layout"], scale_of)
                if group["period"]:
                    whole, its_scale = _matrices(group, p, like, None, scale_of)
                    matrices += f"; every {group['period']} steps {whole}"
                    scale += f"; {its_scale}"
            row = [str(name or number), "x".join(map(str, p.shape)), algorithm, matrices, scale]
            row += [reason] if has_reasons else []
            rows.append((*row, *shared.get(p, [""] * len(titles))))
            number += 1
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _matrices(group: dict[str, Any], p: Tensor, like: Tensor, layout: Layout, scale_of: ScaleOf) -> tuple[str, str]:
    """How many matrices of which shapes a parameter is, and their factors for lr."""
    shapes = [tuple(m.shape) for m in split(like, layout)]
    scales = sorted({scale_of(group, p, layout, shape) for shape in shapes})
    counts = (f"{shapes.count(s)} x {s[0]}x{s[1]}" for s in dict.fromkeys(shapes))
    return ", ".join(counts), ", ".join(f"{s:.4g}" for s in scales)
