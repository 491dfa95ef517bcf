"""`Muon` in timm's registry, for `timm.optim.create_optimizer_v2` and what calls it.

timm is imported when it is asked for; its own checkpoints are read by `muon_kernels.compat.from_timm`.
"""

from __future__ import annotations

from .build import build_muon

_DEFAULTS = {"ns_coefficients": "quintic", "nesterov": False, "adjust_lr_fn": "match_rms_adamw"}
"""Those of timm's "muon" where they are not ours."""


def register(name: str = "muonkernels") -> None:
    """Adds an optimizer to timm's registry (tested with timm 1.0.22 and 1.0.31).

    `create_optimizer_v2(model, name, lr=0.02, param_group_fn=param_groups_for)` sees modules and names; without
    `param_group_fn` timm makes the groups (weight decay, layer decay, `fallback_list`), and shapes decide inside them.
    Keyword arguments are those of `build_muon`, with the defaults of timm's "muon".

    Args:
        name: what timm calls it; no underscore, which timm keeps for "lookahead_...". One that is taken is replaced,
            and timm logs that.

    Raises:
        ImportError: timm is not installed.
        ValueError: a name with an underscore.
    """
    if "_" in name:
        raise ValueError(f"name must not have an underscore, which timm takes for a prefix, got {name!r}")
    from timm.optim._optim_factory import OptimInfo, default_registry  # timm.optim does not export the registry

    info = OptimInfo(
        name=name,
        opt_class=build_muon,
        description="Muon of muon_kernels, with AdamW for what is not a matrix",
        has_momentum=True,
        defaults=dict(_DEFAULTS),
    )
    default_registry.register(info)
