"""The waves of a step: momentum, orthogonalisation and parameters of matrices that are in scratch memory together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import dispatch, ops
from .buckets import Bucket, open_bucket
from .described import Described, describe
from .orthogonalize import Orthogonalizer, chain_plan
from .refusals import Matrices
from .schedule import Launch
from .variants.weight_decay import with_cautious_decay


def step_waves(
    group: dict[str, Any],
    bucket: Bucket,
    described: Sequence[Described],
    launches: list[Launch],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    request: str,
) -> None:
    """Steps the matrices of launches, which differ in their matrices alone and are known to fit, with the options of
    their group.

    Args:
        described: the bucket's parameters, gradients and momenta.
        grad_scale, found_inf: as of `ops.prologue`, on the launches' device.
        request: `backends.requested`, asked once a step: to read the environment takes a microsecond.
    """
    opens = bool(bucket.absmax or bucket.keys)
    if not opens:
        launches = _step_whole(group, described, launches, grad_scale, found_inf, request)
    for launch in launches:
        with open_bucket(group, bucket.select(launch.wave.order), found_inf) as matrices:
            if opens:
                lists = [describe(own) for own in (matrices.params, matrices.grads, matrices.momenta)]
                opened = launch._replace(wave=replace(launch.wave, order=tuple(range(len(launch.scales)))))
                if not _step_whole(group, lists, [opened], grad_scale, found_inf, request):
                    continue
            _step_by_ops(group, matrices, launch, grad_scale, found_inf)


def matrices_of(group: dict[str, Any], bucket: Bucket, launch: Launch) -> Matrices:
    """What `step_waves` gives to ops of a launch, and of those that differ from it in their matrices alone."""
    first = launch.wave.order[0]
    return Matrices(
        group,
        launch.device,
        launch.compute,
        torch.float32 if bucket.keys else bucket.params[first].dtype,
        bucket.grads[first].dtype,
        torch.float32 if bucket.absmax else bucket.momenta[first].dtype,
        bucket.moments[first].dtype if bucket.moments else None,
        shared=False,
    )


def _step_by_ops(
    group: dict[str, Any], matrices: Bucket, launch: Launch, grad_scale: Tensor | None, found_inf: Tensor | None
) -> None:
    """The matrices of one launch, in the order of its wave, opened."""
    chain = Orthogonalizer(
        launch.wave.groups,
        launch.rows,
        method=group["method"],
        preconditioning=group["preconditioning"],
        compute_dtype=launch.compute,
        device=launch.device,
        eps=group["eps"],
        safety_factor=group["safety_factor"],
        factored=group["normalizer"] is None and group["weight_decay_rule"] == "decoupled",
    )
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
    lr, weight_decay, scales = _rate(group, launch), group["weight_decay"], launch.scales
    if chain.factored:
        left, right = chain.factors(inputs, sumsq)
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
    orthogonal = chain.run(inputs, sumsq)
    if group["normalizer"] is not None:
        orthogonal = group["normalizer"].run(orthogonal, matrices.moments, found_inf)
    if group["weight_decay_rule"] == "cautious":
        updates = with_cautious_decay(orthogonal, matrices.params, scales, weight_decay)
        weight_decay, scales = 0.0, [1.0] * len(scales)
    else:
        updates = _unbind(orthogonal)
    ops.apply(matrices.params, updates, lr=lr, weight_decay=weight_decay, scales=scales, found_inf=found_inf)


def _step_whole(
    group: dict[str, Any],
    described: Sequence[Described],
    launches: list[Launch],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    request: str,
) -> list[Launch]:
    """Takes each wave in one call, where the backend has that; returns the launches that are left."""
    plain = group["normalizer"] is None and group["weight_decay_rule"] == "decoupled"
    if not plain or group["preconditioning"] != "frobenius" or group["method"] == "svd":
        return launches
    if any(of.read is None for of in described):
        return launches
    first = launches[0]
    run = dispatch.whole("waves", [[of.tensors[first.wave.order[0]]] for of in described], request)
    if run is None:
        return launches
    plans = [chain_plan(launch.wave.groups, launch.rows, group["method"], first.compute, True) for launch in launches]
    if any(None in plan.factors for plan in plans):
        return launches
    params, grads, momenta = described
    ran = run(
        [(plan, launch.wave.order, launch.scales) for plan, launch in zip(plans, launches, strict=True)],
        grads,
        momenta,
        params,
        momentum=group["momentum"],
        nesterov=group["nesterov"],
        maximize=group["maximize"],
        grad_scale=grad_scale,
        eps=group["eps"],
        safety_factor=group["safety_factor"],
        lr=_rate(group, first),
        weight_decay=group["weight_decay"],
        found_inf=found_inf,
    )
    return [launch for launch, done in zip(launches, ran, strict=True) if not done]


def _rate(group: dict[str, Any], launch: Launch) -> float | Tensor:
    """lr; one on another device comes along, one on the host is read there."""
    lr: float | Tensor = group["lr"]
    return lr.to(launch.device) if isinstance(lr, Tensor) and lr.device.type != "cpu" else lr


def _unbind(batches: Sequence[Tensor]) -> list[Tensor]:
    return [matrix for batch in batches for matrix in batch.unbind(0)]
