"""What of a step depends on shapes, dtypes and devices alone: which matrices run together, and in which waves."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .buckets import Bucket, open_bytes
from .checks import MUON_OPTIONS, check_grads, check_muon, frozen
from .coefficients import Row, resolve_coefficients
from .described import Described, describe
from .matrices import Layout, step_factor
from .negated import check_not_negated
from .orthogonalize import Method, default_compute_dtype, scratch_bytes
from .periodic import block_factor, layout_of_step
from .scaling import resolve_rule
from .workspace import Wave, plan_waves

_OPTIONS = (
    "ns_coefficients",
    "ns_steps",
    "adjust_lr_fn",
    "method",
    "compute_dtype",
    "momentum_store",
    "rounding",
    "block_lr_scale",
)
"""What else of a group decides."""


class Launch(NamedTuple):
    """Matrices of a group that run together: on one device, and in one dtype each for parameters, gradients, momenta.

    wave: its numbers are those in the group's bucket.
    scales: what lr is multiplied by for each of the wave's matrices.
    rows: coefficients of the chain.
    compute: its precision.
    """

    wave: Wave
    scales: list[float]
    rows: tuple[Row, ...]
    compute: torch.dtype
    device: torch.device


class Schedule:
    """What a step needs to know of every group of an optimizer, found again as long as nothing that decides it changes.

    Between two steps a group is as it was if its parameters, gradients and momenta have the shapes, dtypes and devices
    that they had; which tensors they are does not matter, and none is kept.
    """

    def __init__(self) -> None:
        self._checked: dict[int, Any] = {}
        self._options: dict[int, list[Any]] = {}
        self._kept: dict[int, deque[tuple[Any, list[list[Launch]]]]] = {}

    def check(
        self, number: int, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]
    ) -> tuple[Described, Described]:
        """`checks.check_grads`, and `checks.check_muon` of a group with Muon, if the parameters or their gradients, or
        an option, are not as in the group's last step. Not seen is a gradient that becomes lazily negated after one
        that was not: to ask 72 of them takes 7 us, a tenth of a step.

        Args:
            number: of the group.
            params, grads: those of the group that have a gradient, and these.

        Returns:
            The two lists described.
        """
        described = describe(params), describe(grads)
        if torch.compiler.is_compiling():
            check_grads(params)
            if group["use_muon"]:
                check_muon(group)
            return described
        found = [of.like for of in described]
        if found != self._checked.get(number):
            check_grads(params)
            self._checked[number] = found
        if group["use_muon"]:
            options = [group[name] for name in MUON_OPTIONS]
            known = self._options.get(number)
            # The same objects: what is equal may be of another type.
            if known is None or not all(map(operator.is_, options, known)):
                check_muon(group)
                group |= frozen(group)  # as of one that was added
                self._options[number] = [group[name] for name in MUON_OPTIONS]
        return described

    def launches(
        self,
        number: int,
        group: dict[str, Any],
        bucket: Bucket,
        owners: list[Tensor],
        described: Sequence[Described],
        max_bytes: Callable[[torch.device], int],
    ) -> list[list[Launch]]:
        """What of a group runs together in the coming step. The launches of each list differ in their matrices alone.

        Args:
            number: of the group.
            bucket, owners: of the coming step, as `fill_bucket` returns them.
            described: the bucket's parameters, gradients and momenta.
            max_bytes: bound on scratch memory, by device.

        Raises:
            ValueError: a momentum that is not like its parameter, or lazily negated.
        """
        if torch.compiler.is_compiling():  # which would guard every number of this
            return _scheduled(group, bucket, owners, max_bytes)
        layout = layout_of_step(group)
        key = (
            layout,
            [group[name] for name in _OPTIONS],
            [of.like for of in described],
            None if layout is None else [p.shape for p in owners],
        )
        kept = self._kept.setdefault(number, deque(maxlen=2))  # a period has two kinds of steps
        for before, launches in kept:
            if before == key:
                return launches
        launches = _scheduled(group, bucket, owners, max_bytes)
        kept.append((key, launches))
        return launches


def lr_scale(group: dict[str, Any], p: Tensor, layout: Layout, shape: Sequence[int]) -> float:
    """What lr is multiplied by for a matrix of `shape` of the parameter `p` in a step with this layout."""
    return resolve_rule(group["adjust_lr_fn"])(shape) * step_factor(p.shape, layout) * block_factor(group, layout)


def chain_waves(
    shapes: Sequence[tuple[int, int]],
    rows: Sequence[Row],
    *,
    method: Method,
    compute_dtype: torch.dtype,
    max_bytes: int,
    opened_bytes: int = 0,
) -> tuple[Wave, ...]:
    """`plan_waves` for matrices that are orthogonalised: what an `Orthogonalizer` takes for them, and `opened_bytes` an
    element, stays within `max_bytes`."""
    need = {
        s: scratch_bytes(*s, rows, method=method, compute_dtype=compute_dtype) + s[0] * s[1] * opened_bytes
        for s in set(shapes)
    }
    return plan_waves(tuple(shapes), tuple(need[s] for s in shapes), max_bytes)


def _scheduled(
    group: dict[str, Any], bucket: Bucket, owners: list[Tensor], max_bytes: Callable[[torch.device], int]
) -> list[list[Launch]]:
    _check(bucket)
    layout = layout_of_step(group)
    rows = resolve_coefficients(group["ns_coefficients"], group["ns_steps"])
    together: dict[tuple[Any, ...], list[int]] = {}
    for i, (p, grad, momentum) in enumerate(zip(bucket.params, bucket.grads, bucket.momenta, strict=True)):
        together.setdefault((p.device, p.dtype, grad.dtype, momentum.dtype), []).append(i)
    launches: list[list[Launch]] = []
    for (device, *_), numbers in together.items():
        compute = group["compute_dtype"] or default_compute_dtype(device)
        waves = chain_waves(
            [(height, width) for height, width in (bucket.params[i].shape for i in numbers)],
            rows,
            method=group["method"],
            compute_dtype=compute,
            max_bytes=max_bytes(device),
            opened_bytes=open_bytes(group),
        )
        launches.append([])
        for wave in waves:
            order = tuple([numbers[i] for i in wave.order])
            scales = [lr_scale(group, owners[i], layout, bucket.params[i].shape) for i in order]
            launches[-1].append(Launch(Wave(order, wave.groups), scales, rows, compute, device))
    return launches


def _check(bucket: Bucket) -> None:
    """Raises ValueError for a momentum that is not like its parameter, or that torch negates as it reads it (gradients
    have been checked)."""
    coded = bool(bucket.absmax)
    for p, momentum in zip(bucket.params, bucket.momenta, strict=True):
        like = momentum.shape == p.shape and momentum.device == p.device
        if not like or not (coded or momentum.is_floating_point()):
            raise ValueError(
                f"a momentum must be like its parameter ({list(p.shape)} on {p.device}) and floating point, "
                f"got {momentum.dtype} {list(momentum.shape)} on {momentum.device}"
            )
        check_not_negated("a momentum", momentum)
