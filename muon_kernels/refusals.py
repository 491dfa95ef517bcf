"""The ops of a step, asked for before it: a backend that is named and refuses one of them does so where nothing has
changed yet. Without a name nothing is to be asked: the reference takes what others refuse."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from . import backends
from .coefficients import resolve_coefficients
from .orthogonalize import raw_dtype
from .svd import polar_dtype


class Matrices(NamedTuple):
    """What decides about the ops of matrices that are stepped with the options of their group.

    compute: precision of the chain.
    param, grad, momentum: dtypes of what the ops are given.
    moment: dtype of the second moments; None without a normaliser.
    shared: whether several ranks hold them.
    """

    group: dict[str, Any]
    device: torch.device
    compute: torch.dtype
    param: torch.dtype
    grad: torch.dtype
    momentum: torch.dtype
    moment: torch.dtype | None
    shared: bool


def backend_request() -> str:
    """`backends.requested`. A compiler hears "auto": what it makes of a step selects as it runs."""
    return "auto" if torch.compiler.is_compiling() else backends.requested()


def check_backend(matrices: Matrices) -> None:
    """Raises BackendUnavailable if no backend that was asked for can run an op of a step of `matrices`."""
    check_ops(matrices.device, ops_of_step(matrices))


def check_ops(device: torch.device, ops: Iterable[tuple[str, tuple[torch.dtype, ...]]]) -> None:
    """Raises BackendUnavailable if no backend that was asked for can run one of `ops` on lists of these dtypes."""
    request = backends.requested()
    for op, dtypes in ops:
        _select(request, op, device, dtypes)


def ops_of_step(matrices: Matrices) -> Iterator[tuple[str, tuple[torch.dtype, ...]]]:
    """Each op, and the dtype of each of its lists; not products and sums of squares, which run wherever chains of
    products and `normalize` do."""
    group, _, compute, param, grad, momentum, moment, shared = matrices
    raw, exact = raw_dtype(compute), group["method"] == "svd"
    yield "prologue", (grad, momentum, raw)
    yield from ops_of_chain(group, raw, compute)
    chained = _has_chain(group)
    if group["preconditioning"] == "aol" and not chained:
        yield "chains", (compute,)
    cautious = group["weight_decay_rule"] == "cautious"
    by_products = chained and compute == torch.float16 and moment is None and not cautious
    if by_products:
        yield "gemm_apply", (compute, compute, param)
    if cautious:
        yield "apply", (param, torch.promote_types(param, torch.float32))
    elif shared or not by_products:
        yield "apply", (param, moment or (polar_dtype(raw) if exact else compute))


def ops_of_chain(
    group: dict[str, Any], given: torch.dtype, compute: torch.dtype
) -> Iterator[tuple[str, tuple[torch.dtype, ...]]]:
    """Those of `ops_of_step` by which matrices of dtype `given` are orthogonalised, up to the last product."""
    if group["method"] != "svd":
        yield "normalize", (given, compute)
    if _has_chain(group):
        yield "chains", (compute,)


def _has_chain(group: dict[str, Any]) -> bool:
    return group["method"] != "svd" and bool(resolve_coefficients(group["ns_coefficients"], group["ns_steps"]))


@lru_cache(maxsize=256)
def _select(request: str, op: str, device: torch.device, dtypes: tuple[torch.dtype, ...]) -> None:
    """`backends.select` under the request in force, on stand-ins without memory for lists that are made in the step."""
    backends.select(op, device, [[torch.empty((1, 8, 8), dtype=dtype, device="meta")] for dtype in dtypes])
