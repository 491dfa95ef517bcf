"""Parameter groups from the rules, and a summary of what went where."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim.optimizer import ParamsT

from ..matrices import Layout, freeze_layout, split
from .heads import heads_of
from .items import given, owned
from .rules import MAX_ASPECT_RATIO, MIN_DIM_SIZE, Patterns, by_module, by_shape, flagged

_logger = logging.getLogger("muon_kernels.routing")
_SHOWN = 10
_ALGORITHMS = {"adamw": "AdamW", "nadam": "NAdam"}


def param_groups_for(
    model: nn.Module | ParamsT,
    *,
    muon: Mapping[str, Any] | None = None,
    auxiliary: Mapping[str, Any] | None = None,
    use_muon: Mapping[str, bool] | None = None,
    layout: Mapping[str, Layout] | None = None,
    min_dim_size: int = MIN_DIM_SIZE,
    max_aspect_ratio: float = MAX_ASPECT_RATIO,
    verbose: bool = False,
) -> list[dict[str, Any]]:
    """Parameter groups for `Muon`: every trainable parameter, with the reason why it goes where it goes.

    A flag decides first: a pattern in `use_muon`, or a group's own `use_muon` or `use_fallback`. Then, for a model, the
    module that holds the parameter and its name decide, and last the shape (`shape_reason`).

    - The auxiliary optimizer gets embeddings ("embedding", heads tied to one included), output layers ("head"),
      parameters of normalisation layers ("norm"), biases ("bias"), and what `shape_reason` finds unsuitable,
      depthwise convolutions included.
    - Muon gets the rest ("ok"). Convolutions are flattened, the fused projection of `nn.MultiheadAttention` is split
      in three, the weight of transformers' `Conv1D` is transposed, another parameter of more than two dimensions is a
      batch of matrices.

    An output layer is `model.get_output_embeddings()` if there is one, else the last linear layer or convolution of a
    module named like one (`HEAD_NAMES`), else the last layer of the model unless it lies in a numbered block.

    Without a model only flags and shapes decide, as in timm: an embedding or a head is a matrix like others, and more
    than two dimensions are flattened.

    Args:
        model: a module; or parameters, (name, parameter) pairs or groups, whose own options are kept and win.
        muon, auxiliary: options of the groups with and without `use_muon`, for example {"lr": 0.02}. Biases,
            parameters of normalisation layers and those below two dimensions get a group without weight decay.
        use_muon: patterns of parameter names, as in a shell ("*.router.weight"), to a decision; the last match wins.
        layout: patterns of parameter names to a layout, for example {"*.qkv.weight": "qkv"}; the last match wins.
        min_dim_size, max_aspect_ratio: thresholds of `shape_reason`.
        verbose: log a summary (logger "muon_kernels.routing", level INFO).

    Returns:
        Groups for `Muon(groups)`, with the parameters' names if they have any, and under "reasons" one reason for each
        parameter, which `Muon.explain()` prints. Parameters that do not require a gradient are left out.

    Raises:
        TypeError: something that is neither a module nor parameters, or a lazy parameter, which has no shape yet.
        ValueError: a pattern that matches no parameter, a threshold below 1, a layout that a parameter does not have,
            or no parameter at all.
    """
    for name, threshold in (("min_dim_size", min_dim_size), ("max_aspect_ratio", max_aspect_ratio)):
        if not threshold >= 1:
            raise ValueError(f"{name} must be >= 1, got {threshold}")
    items = list(owned(model) if isinstance(model, nn.Module) else given(model))
    if not items:
        raise ValueError("param_groups_for found no parameter that requires a gradient")
    heads = heads_of(model) if isinstance(model, nn.Module) else set()
    flags = Patterns("use_muon", use_muon, items)
    layouts = Patterns("layout", layout, items)

    named = all(item.name for item in items)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for item in items:
        route = flagged(item, flags) or by_module(item, heads) or by_shape(item, min_dim_size, max_aspect_ratio)
        decays = route.reason not in ("bias", "norm") and item.param.ndim >= 2
        defaults = dict((muon if route.use_muon else auxiliary) or {})
        if route.use_muon:
            asked = layouts.last_match(item.name, route.layout)
            defaults["layout"] = freeze_layout(item.options.get("layout", asked))
            try:
                split(item.param.detach(), defaults["layout"])
            except ValueError as error:
                raise ValueError(f"parameter {item.name or '(unnamed)'}: {error}") from None
        elif not decays:
            defaults["weight_decay"] = 0.0
        options = {key: value for key, value in item.options.items() if key not in ("use_fallback", "layout")}
        new = defaults | options | {"params": [], "use_muon": route.use_muon, "reasons": []}
        group = groups.setdefault((id(item.options), route.use_muon, defaults.get("layout"), decays), new)
        group["params"].append((item.name, item.param) if named else item.param)
        group["reasons"].append(route.reason)
    if verbose:
        _logger.info(_summary(list(groups.values())))
    return list(groups.values())


def _summary(groups: Sequence[Mapping[str, Any]]) -> str:
    """What goes where, by reason, as lines of text; the shapes of each reason, the first few by name."""
    entries: dict[tuple[str, str], list[str]] = {}
    for group in groups:
        fallback = group.get("algorithm", "adamw")
        algorithm = "Muon" if group["use_muon"] else _ALGORITHMS.get(fallback, fallback)
        for member, reason in zip(group["params"], group["reasons"], strict=True):
            name, param = member if isinstance(member, tuple) else ("", member)
            shape = "x".join(map(str, param.shape)) or "scalar"
            entries.setdefault((reason, algorithm), []).append(f"{shape}  {name}".rstrip())
    totals = {"Muon": 0}
    for (_, algorithm), shapes in sorted(entries.items()):
        totals[algorithm] = totals.get(algorithm, 0) + len(shapes)
    counts = ", ".join(f"{count} {algorithm}" for algorithm, count in totals.items())
    breakdown = ", ".join(f"{reason}={len(shapes)}" for (reason, _), shapes in sorted(entries.items()))
    lines = [f"Muon parameter routing: {counts}", f"  Breakdown: {breakdown}"]
    for (reason, algorithm), shapes in sorted(entries.items()):
        lines.append(f"    {reason} -> {algorithm}:")
        lines += [f"      {shape}" for shape in sorted(shapes)[:_SHOWN]]
        if len(shapes) > _SHOWN:
            lines.append(f"      ... and {len(shapes) - _SHOWN} more")
    return "\n".join(lines)
