"""The optimizer for what Muon is not for (embeddings, heads, norms, biases): torch's own AdamW or NAdam."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.nadam import nadam

from .distributed.dtensors import local
from .matrices import ordered_like
from .variants.rounding import rounding_keys, stochastically_rounded

ALGORITHMS = ("adamw", "nadam")
DEFAULTS: dict[str, Any] = {"algorithm": "adamw", "betas": (0.9, 0.95), "eps": 1e-8}
"""What a `use_muon=False` group gets where it says nothing; lr and weight_decay come from the constructor."""


def check_group(group: dict[str, Any]) -> None:
    """Raises ValueError for an option of an auxiliary group that is out of its range."""
    if group["algorithm"] not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {group['algorithm']!r}")
    betas = group["betas"]
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")
    if not group["eps"] >= 0.0:
        raise ValueError(f"eps must be >= 0, got {group['eps']}")


def init_state(param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    """A fresh state, with torch's keys: AdamW's, and mu_product for NAdam."""
    state = {
        "step": torch.zeros((), dtype=torch.float32, device=param.device),
        "exp_avg": torch.zeros_like(param, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(param, memory_format=torch.preserve_format),
    }
    if group["algorithm"] == "nadam":
        state["mu_product"] = torch.ones((), dtype=torch.float32, device=param.device)
    return state


def step(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[dict[str, Tensor]],
    group: dict[str, Any],
    *,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """One step of the group's algorithm over `params` with their gradients, which stay as they are; a gradient of
    another dtype or memory order is converted: torch's fused kernels take the elements as they lie. A state that is
    empty is begun; averages of another dtype (a checkpoint's) are kept in the parameter's from now on.

    With `found_inf` set AdamW skips on the device; NAdam, which torch has no fused kernel for, reads the flag first.
    DTensors are stepped by their local tensors, so that those of several meshes may be in one group.
    """
    with _opened(params, states, group, found_inf) as stepped:
        for state, target in zip(states, stepped, strict=True):
            if "step" not in state:
                state.update(init_state(target, group))
        _step(stepped, grads, states, group, grad_scale, found_inf)


@contextmanager
def _opened(
    params: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any], found_inf: Tensor | None
) -> Iterator[list[Tensor]]:
    """What is stepped: `params`, or float32 copies that they are stochastically rounded from at the end."""
    if group["rounding"] == "nearest":
        yield params
        return
    with ExitStack() as copies:
        stepped: dict[Tensor, Tensor] = {}
        for device in dict.fromkeys(p.device for p in params):
            here = [p for p in params if p.device == device]
            keys = [
                key for p, s in zip(params, states, strict=True) if p.device == device for key in rounding_keys(s, [p])
            ]
            skip = None if found_inf is None else found_inf.to(device)
            rounded = stochastically_rounded(here, keys, skip)
            stepped |= dict(zip(here, copies.enter_context(rounded), strict=True))
        yield [stepped[p] for p in params]


def _step(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[dict[str, Tensor]],
    group: dict[str, Any],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    grads = [ordered_like(local(p), local(g).to(p.dtype)) for p, g in zip(params, grads, strict=True)]
    if grad_scale is not None:
        # torch's kernels would unscale the gradients in place.
        grads = [(g / grad_scale).to(g.dtype) for g in grads]
    for p, state in zip(params, states, strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = ordered_like(p, state[key].to(p.dtype))
    params = [local(p.detach()) for p in params]
    exp_avgs, exp_avg_sqs, steps = ([local(s[key]) for s in states] for key in ("exp_avg", "exp_avg_sq", "step"))
    beta1, beta2 = group["betas"]
    on_cuda = params[0].is_cuda
    if group["algorithm"] == "adamw":
        adamw(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            [],
            steps,
            fused=True,
            found_inf=found_inf,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )
    elif found_inf is None or not found_inf.item():
        nadam(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            [local(s["mu_product"]) for s in states],
            steps,
            decoupled_weight_decay=True,
            capturable=on_cuda,
            maximize=group["maximize"],
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            momentum_decay=4e-3,
            eps=group["eps"],
        )
