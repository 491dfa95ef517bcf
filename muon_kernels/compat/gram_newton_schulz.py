"""The names of gram-newton-schulz 0.1.6, for `from muon_kernels.compat.gram_newton_schulz import ...`.

What differs from the package, on purpose:

- a checkpoint restores the hyper-parameters, and holds the scalar optimizer's averages too
- the momentum is stored as an average, (1 - momentum) times the package's; updates are the same (`compat.states`)
- `muon_kernels.use_backend` and MUON_KERNELS_BACKEND choose what runs, not `ns_use_kernels`; nothing is compiled, tuned
  or printed, whatever `compile_kwargs` say; `max_workspace_bytes` bounds scratch memory, not `ns_max_batch_size`
- the restart of the Gram chain is always before the third step: other positions differ in rounding only
- a norm below `ns_epsilon` is raised to that, not by it; the chain runs in the default precision of `muon_kernels`
- the Gram chain runs where it saves work, from an aspect ratio of 1.5 on (and not in bfloat16)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.optimizer import ParamsT

from ..coefficients import PRESETS, Row, freeze_coefficients
from ..matrices import Layout, split
from ..muon import Muon as _Muon
from ..orthogonalize import Method, orthogonalize
from .states import adjust_lr_rule, from_gram_newton_schulz

__all__ = [
    "POLAR_EXPRESS_COEFFICIENTS",
    "YOU_COEFFICIENTS",
    "GramNewtonSchulz",
    "Muon",
    "StandardNewtonSchulz",
]

POLAR_EXPRESS_COEFFICIENTS = [list(row) for row in PRESETS["polar_express_1.05"].rows]
YOU_COEFFICIENTS = [list(row) for row in PRESETS["quintic"].rows]

_PRESETS = {"POLAR_EXPRESS_COEFFICIENTS": POLAR_EXPRESS_COEFFICIENTS, "YOU_COEFFICIENTS": YOU_COEFFICIENTS}
_METHODS: dict[str, Method] = {"gram_newton_schulz": "auto", "standard_newton_schulz": "standard"}
_ADAMW_OPTIONS = ("lr", "betas", "eps", "weight_decay", "maximize", "initial_lr")


class GramNewtonSchulz:
    """A callable that orthogonalises [..., rows, cols]; the result has the input's shape and dtype.

    Args:
        ns_epsilon: lower bound of the norm that a matrix is divided by.
        ns_coefficients: rows (a, b, c), one a step; default POLAR_EXPRESS_COEFFICIENTS.
        use_gram_newton_schulz: False runs the standard chain always.
        ns_use_kernels, gram_newton_schulz_reset_iterations, compile_kwargs: without effect, see the module.
    """

    def __init__(
        self,
        ns_epsilon: float = 1e-7,
        ns_use_kernels: bool = True,
        ns_coefficients: Sequence[Sequence[float]] | None = None,
        use_gram_newton_schulz: bool = True,
        gram_newton_schulz_reset_iterations: Sequence[int] | None = None,
        compile_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.ns_epsilon = ns_epsilon
        self.ns_coefficients = _rows(ns_coefficients)
        self.use_gram_newton_schulz = use_gram_newton_schulz

    def __call__(self, X: Tensor) -> Tensor:
        return orthogonalize(
            X,
            method="auto" if self.use_gram_newton_schulz else "standard",
            ns_coefficients=self.ns_coefficients,
            ns_steps=len(self.ns_coefficients),
            eps=self.ns_epsilon,
        )


class StandardNewtonSchulz(GramNewtonSchulz):
    """`GramNewtonSchulz` with the standard chain always."""

    def __init__(
        self,
        ns_epsilon: float = 1e-7,
        ns_use_kernels: bool = True,
        ns_coefficients: Sequence[Sequence[float]] | None = None,
        compile_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(ns_epsilon, ns_use_kernels, ns_coefficients, use_gram_newton_schulz=False)


class Muon(_Muon):
    """gram_newton_schulz.Muon. Three dimensions and more are batches of matrices.

    Args:
        params, lr, weight_decay, momentum, nesterov: as in `muon_kernels.Muon`. A group may hold `param_split_fn`,
            from a parameter to views of it with as many dimensions, and `param_recombine_fn`, its inverse, which is
            not called: the views are updated in place.
        adjust_lr: "rms_norm" (0.2 sqrt(max(rows, cols))), "spectral_norm" (sqrt(rows / cols)), None for no
            adjustment, or a function (lr, shape) -> lr that is proportional to lr. By matrix, as are the groups'.
        ns_coefficients, ns_coefficients_preset: rows, or one of the two lists by its name, which wins.
        ns_algorithm: "gram_newton_schulz" or "standard_newton_schulz".
        ns_epsilon: lower bound of the norm that a matrix is divided by.
        ns_use_kernels, ns_max_batch_size, gram_newton_schulz_num_restarts, gram_newton_schulz_restart_iterations:
            without effect, see the module.
        scalar_optimizer: a torch.optim.AdamW (or an Adam without weight decay), whose groups and state are taken
            over: this optimizer steps and saves them from now on, and schedulers belong to it, not to the other.

    Raises:
        TypeError, ValueError: an argument or a group option that is out of its range, by name and value.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        adjust_lr: str | Callable[[float, Sequence[int]], float] | None = "rms_norm",
        ns_coefficients: Sequence[Sequence[float]] | None = None,
        ns_coefficients_preset: str | None = None,
        ns_algorithm: Literal["gram_newton_schulz", "standard_newton_schulz"] = "gram_newton_schulz",
        ns_epsilon: float = 1e-7,
        ns_use_kernels: bool = True,
        ns_max_batch_size: int | None = None,
        gram_newton_schulz_num_restarts: int = 1,
        gram_newton_schulz_restart_iterations: Sequence[int] | None = None,
        scalar_optimizer: Optimizer | None = None,
    ) -> None:
        if ns_coefficients_preset is not None and ns_coefficients_preset not in _PRESETS:
            raise ValueError(
                f"ns_coefficients_preset must be None or one of {', '.join(_PRESETS)}, got {ns_coefficients_preset!r}"
            )
        if ns_algorithm not in _METHODS:
            raise ValueError(f"ns_algorithm must be one of {', '.join(_METHODS)}, got {ns_algorithm!r}")
        if not ns_epsilon > 0.0:
            raise ValueError(f"ns_epsilon must be > 0, got {ns_epsilon}")
        if ns_max_batch_size is not None and not (isinstance(ns_max_batch_size, int) and ns_max_batch_size >= 1):
            raise ValueError(f"ns_max_batch_size must be None or a positive integer, got {ns_max_batch_size!r}")
        if not (isinstance(gram_newton_schulz_num_restarts, int) and gram_newton_schulz_num_restarts >= 0):
            raise ValueError(
                f"gram_newton_schulz_num_restarts must be an integer >= 0, got {gram_newton_schulz_num_restarts!r}"
            )
        if ns_coefficients_preset is not None:
            ns_coefficients = _PRESETS[ns_coefficients_preset]
        rows = _rows(ns_coefficients)
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_coefficients=rows,
            ns_steps=len(rows),
            eps=ns_epsilon,
            adjust_lr_fn=adjust_lr_rule(adjust_lr),
            method=_METHODS[ns_algorithm],
            layout="batch",
        )
        if scalar_optimizer is not None:
            self._take_over(scalar_optimizer)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `muon_kernels.Muon.add_param_group`, with the package's own group options."""
        group = dict(param_group)
        if "adjust_lr" in group:
            group["adjust_lr_fn"] = adjust_lr_rule(group.pop("adjust_lr"))
        split_fn, recombine_fn = group.pop("param_split_fn", None), group.pop("param_recombine_fn", None)
        if (split_fn is None) != (recombine_fn is None):
            raise ValueError("param_split_fn and param_recombine_fn must both be given or both be None")
        if split_fn is not None:
            group["layout"] = _layout(split_fn)
        super().add_param_group(group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads its own checkpoints and the package's, hyper-parameters included."""
        super().load_state_dict(from_gram_newton_schulz(state_dict))

    def _take_over(self, scalar_optimizer: Optimizer) -> None:
        if not isinstance(scalar_optimizer, Adam):  # AdamW is an Adam
            raise TypeError(f"scalar_optimizer must be a torch.optim.AdamW, got {type(scalar_optimizer).__name__}")
        for group in scalar_optimizer.param_groups:
            if group["amsgrad"]:
                raise ValueError("scalar_optimizer must have amsgrad=False, got True")
            if group["weight_decay"] and not group["decoupled_weight_decay"]:
                raise ValueError(f"an Adam as scalar_optimizer must have no weight decay, got {group['weight_decay']}")
        for group in scalar_optimizer.param_groups:
            params = group["params"]
            named = list(zip(group["param_names"], params, strict=True)) if "param_names" in group else params
            options = {name: group[name] for name in _ADAMW_OPTIONS if name in group}
            self.add_param_group(options | {"params": named, "use_muon": False})
            for p in params:
                if p in scalar_optimizer.state:
                    state = dict(scalar_optimizer.state[p])
                    self.state[p] = state | {"step": state["step"].to(p.device, torch.float32)}


def _rows(ns_coefficients: Sequence[Sequence[float]] | None) -> tuple[Row, ...]:
    rows = freeze_coefficients(POLAR_EXPRESS_COEFFICIENTS if ns_coefficients is None else ns_coefficients)
    if isinstance(rows, str) or not isinstance(rows[0], tuple):
        raise ValueError(f"ns_coefficients must be a list of rows (a, b, c), got {ns_coefficients!r}")
    return rows


def _layout(split_fn: Callable[[Tensor], Sequence[Tensor]]) -> Layout:
    def param_split_fn(tensor: Tensor) -> list[Tensor]:
        return [matrix for part in split_fn(tensor) for matrix in split(part, "batch")]

    return param_split_fn
