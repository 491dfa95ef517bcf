"""A wave of a step: momentum, orthogonalisation and parameters of matrices that are in scratch memory together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import dispatch, ops
from .buckets import Bucket
from .orthogonalize import Orthogonalizer
from .schedule import Launch
from .variants.weight_decay import with_cautious_decay


def step_wave(
    group: dict[str, Any], matrices: Bucket, launch: Launch, grad_scale: Tensor | None, found_inf: Tensor | None
) -> None:
    """Steps the matrices of a launch, which are known to fit, with the options of their group.

    Args:
        matrices: in the order of the launch's wave, opened.
        grad_scale, found_inf: as of `ops.prologue`, on the launch's device.
    """
    chain = Orthogonalizer(
        launch.wave.groups,
        launch.rows,
        method=group["method"],
        preconditioning=group["preconditioning"],
        compute_dtype=launch.compute,
        device=launch.device,
        factored=group["normalizer"] is None and group["weight_decay_rule"] == "decoupled",
    )
    if _step_whole(chain, group, matrices, launch, grad_scale, found_inf):
        return
    inputs = chain.inputs
    sumsq = torch.empty(len(matrices.params), dtype=torch.float64, device=launch.device)
    dispatch.run(
        "prologue",
        matrices.grads,
        matrices.momenta,
        _unbind(inputs),
        sumsq,
        momentum=group["momentum"],
        nesterov=group["nesterov"],
        ema=True,
        maximize=group["maximize"],
        grad_scale=grad_scale,
        found_inf=found_inf,
    )
    norm = {"eps": group["eps"], "safety_factor": group["safety_factor"]}
    lr, weight_decay, scales = _rate(group, launch), group["weight_decay"], launch.scales
    if chain.factored:
        left, right = chain.factors(inputs, sumsq, **norm)
        dispatch.run(
            "gemm_apply",
            left,
            right,
            matrices.params,
            lr=dispatch.rate_tensor(lr),
            weight_decay=weight_decay,
            scales=scales,
            found_inf=found_inf,
        )
        return
    orthogonal = chain.run(inputs, sumsq, **norm)
    if group["normalizer"] is not None:
        orthogonal = group["normalizer"].run(orthogonal, matrices.moments, found_inf)
    if group["weight_decay_rule"] == "cautious":
        updates = with_cautious_decay(orthogonal, matrices.params, scales, weight_decay)
        weight_decay, scales = 0.0, [1.0] * len(scales)
    else:
        updates = _unbind(orthogonal)
    ops.apply(matrices.params, updates, lr=lr, weight_decay=weight_decay, scales=scales, found_inf=found_inf)


def _step_whole(
    chain: Orthogonalizer,
    group: dict[str, Any],
    matrices: Bucket,
    launch: Launch,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> bool:
    """The whole wave in one call, where the backend has that; whether it happened."""
    if not chain.factored or group["preconditioning"] != "frobenius":
        return False
    lists = [matrices.grads, matrices.momenta, matrices.params]
    step = dispatch.whole("wave", lists)
    return step is not None and step(
        chain.plan,
        chain.workspace,
        *lists,
        momentum=group["momentum"],
        nesterov=group["nesterov"],
        maximize=group["maximize"],
        grad_scale=grad_scale,
        eps=group["eps"],
        safety_factor=group["safety_factor"],
        lr=_rate(group, launch),
        weight_decay=group["weight_decay"],
        scales=launch.scales,
        found_inf=found_inf,
    )


def _rate(group: dict[str, Any], launch: Launch) -> float | Tensor:
    """lr; one on another device comes along, one on the host is read there."""
    lr: float | Tensor = group["lr"]
    return lr.to(launch.device) if isinstance(lr, Tensor) and lr.device.type != "cpu" else lr


def _unbind(batches: Sequence[Tensor]) -> list[Tensor]:
    return [matrix for batch in batches for matrix in batch.unbind(0)]
