"""The optimizer of a whole model in one call, for what makes optimizers from a dotted path and keyword arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from ..matrices import Layout
from ..muon import Muon
from ..routing import param_groups_for
from ..routing.rules import MAX_ASPECT_RATIO, MIN_DIM_SIZE


def build_muon(
    params: nn.Module | ParamsT,
    lr: float | Tensor = 1e-3,
    *,
    auxiliary: Mapping[str, Any] | None = None,
    use_muon: Mapping[str, bool] | None = None,
    layout: Mapping[str, Layout] | None = None,
    min_dim_size: int = MIN_DIM_SIZE,
    max_aspect_ratio: float = MAX_ASPECT_RATIO,
    **options: Any,
) -> Muon:
    """`Muon(param_groups_for(params, ...), lr, **options)`: matrices to Muon, the rest to its auxiliary AdamW.

    torchtune's `_component_`, Hydra's `_target_` and timm's registry call this with `model.parameters()` or groups of
    them. Without names an embedding or a head differs from other matrices by its shape alone: a lower
    `max_aspect_ratio` leaves one of many rows to AdamW.

    Args:
        params: a module; or parameters, (name, parameter) pairs or groups, whose own options win.
        lr: learning rate of all groups that have none of their own.
        auxiliary: options of the groups without Muon, for example {"lr": 3e-4}.
        use_muon, layout, min_dim_size, max_aspect_ratio: see `param_groups_for`.
        options: other arguments of `Muon`; dtypes may be names ("bfloat16"), sequences lists.

    Raises:
        TypeError, ValueError: as `param_groups_for` and `Muon`.
    """
    groups = param_groups_for(
        params,
        auxiliary=auxiliary,
        use_muon=use_muon,
        layout=layout,
        min_dim_size=min_dim_size,
        max_aspect_ratio=max_aspect_ratio,
    )
    return Muon(groups, lr, **options)
