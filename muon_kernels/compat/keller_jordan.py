"""The names of github.com/KellerJordan/Muon (commit 857d1ad), for `from muon_kernels.compat.keller_jordan import ...`.

The update is his: momentum as an average, always Nesterov, five steps with the original coefficients, step length
sqrt(max(1, rows / cols)); Adam for the rest. What differs, on purpose:

- gradients stay as they are; a parameter without one is skipped, instead of being decayed by a zero gradient
- a convolution's step length comes from the matrix [out, in * kh * kw] that is orthogonalised, not from kh / kw
- the classes that shard the optimizer over ranks step everything on every rank: the same result without a process
  group, given the same gradients (as after DistributedDataParallel)
- the chain runs in the default precision of `muon_kernels.Muon`; a norm below 1e-7 is raised to that, not by it

`load_state_dict` reads the checkpoints of his classes, those of several ranks after `compat.merge_ranks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from ..muon import Muon as _Muon
from ..orthogonalize import orthogonalize
from ..scaling import original
from .states import from_keller_jordan

_MUON_GROUP: dict[str, Any] = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.0}
_ADAM_GROUP: dict[str, Any] = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0.0}


def zeropower_via_newtonschulz5(G: Tensor, steps: int) -> Tensor:
    """The standard chain in bfloat16; G [..., rows, cols], returns bfloat16 of G's shape."""
    bf16 = torch.bfloat16
    return orthogonalize(G, method="standard", ns_steps=steps, compute_dtype=bf16, out_dtype=bf16)


def muon_update(grad: Tensor, momentum: Tensor, beta: float = 0.95, ns_steps: int = 5, nesterov: bool = True) -> Tensor:
    """Moves `momentum` toward `grad` and returns the orthogonalised, scaled update, bfloat16; `grad` stays as it is.

    A 4-D gradient is flattened to [out, in * kh * kw] and comes back so; three dimensions are a batch of matrices.
    """
    momentum.lerp_(grad, 1 - beta)
    update = grad.lerp(momentum, beta) if nesterov else momentum
    update = update.flatten(1) if update.ndim == 4 else update
    return zeropower_via_newtonschulz5(update, ns_steps) * original(update.shape)


def adam_update(grad: Tensor, buf1: Tensor, buf2: Tensor, step: int, betas: tuple[float, float], eps: float) -> Tensor:
    """Updates Adam's two averages in place and returns the bias-corrected step; `step` counts from 1."""
    buf1.lerp_(grad, 1 - betas[0])
    buf2.lerp_(grad.square(), 1 - betas[1])
    corrected = buf2 / (1 - betas[1] ** step)
    return buf1 / (1 - betas[0] ** step) / (corrected.sqrt() + eps)


class SingleDeviceMuon(_Muon):
    """Muon for matrices, 3-D batches of matrices, and parameters of more dimensions, which are flattened."""

    def __init__(self, params: ParamsT, lr: float = 0.02, weight_decay: float = 0, momentum: float = 0.95) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, momentum=momentum)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `Muon.add_param_group`; a group without a layout gets one from its parameters' dimensions."""
        group = dict(param_group)
        if group.get("use_muon", True) and "layout" not in group:
            group["params"] = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
            tensors = [p[1] if isinstance(p, tuple) else p for p in group["params"]]
            dims = {p.ndim for p in tensors} - {2}
            if 3 in dims and len(dims) > 1:
                raise ValueError(f"3-D and {max(dims)}-D parameters must be in groups of their own, or give a layout")
            group["layout"] = "batch" if 3 in dims else "flatten" if dims else None
        super().add_param_group(group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads its own checkpoints and those of the class whose name it has."""
        super().load_state_dict(from_keller_jordan(state_dict))


class Muon(SingleDeviceMuon):
    """As `SingleDeviceMuon`, for a list of parameters, which it sorts by size as the original does: checkpoints fit."""

    def __init__(
        self, params: Sequence[nn.Parameter], lr: float = 0.02, weight_decay: float = 0, momentum: float = 0.95
    ) -> None:
        if not (isinstance(params, list) and params and all(isinstance(p, nn.Parameter) for p in params)):
            raise TypeError(f"params must be a non-empty list of nn.Parameter, got {type(params).__name__}")
        super().__init__(_by_size(params), lr=lr, weight_decay=weight_decay, momentum=momentum)


class SingleDeviceMuonWithAuxAdam(SingleDeviceMuon):
    """Muon and Adam (AdamW's update) in one, by the `use_muon` of every group.

    Groups with `use_muon=True` may hold lr (0.02), momentum (0.95) and weight_decay (0); the others lr (3e-4), betas
    (0.9, 0.95), eps (1e-10) and weight_decay (0). ValueError for any other key. The dicts given are not changed.
    """

    def __init__(self, param_groups: Iterable[Mapping[str, Any]]) -> None:
        super().__init__([_completed(group) for group in param_groups])


class MuonWithAuxAdam(SingleDeviceMuonWithAuxAdam):
    """As `SingleDeviceMuonWithAuxAdam`, with every Muon group sorted by size as in the original: checkpoints fit."""

    def __init__(self, param_groups: Iterable[Mapping[str, Any]]) -> None:
        groups = [dict(group) for group in param_groups]
        for group in groups:
            if group.get("use_muon", False):
                group["params"] = _by_size(group["params"])
        super().__init__(groups)


def _by_size(params: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return sorted(params, key=lambda p: tuple(p.shape), reverse=True)


def _completed(group: Mapping[str, Any]) -> dict[str, Any]:
    if "use_muon" not in group:
        raise ValueError(f"every group must have the key 'use_muon', got {sorted(group)}")
    defaults = _MUON_GROUP if group["use_muon"] else _ADAM_GROUP
    unknown = set(group) - {"params", "use_muon", *defaults}
    if unknown:
        found = ", ".join(sorted(unknown))
        raise ValueError(f"a group with use_muon={group['use_muon']} may hold {', '.join(defaults)}, got {found}")
    return defaults | dict(group)
