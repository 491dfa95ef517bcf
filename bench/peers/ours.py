"""muon_kernels as a user calls it, and with each backend by name (the reference where that has no kernel)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from muon_kernels import Muon, backends, orthogonalize, scaling, use_backend
from muon_kernels.squaring import STAGES

from ..gate import Promise
from .base import LR, WEIGHT_DECAY, Orthogonalizer, Stepper, promise

SQUARING = Promise((), stages=STAGES, rescale="schatten4")
"""Another polynomial and norm than the other columns': about as accurate as Polar Express, with fewer products."""


def _on(backend: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with ops on `backend`; BackendUnavailable if that runs nothing here."""
    request = backend if backend == "reference" else f"{backend},reference"
    with use_backend(backend):
        backends.select("apply", torch.device("cuda" if torch.cuda.is_available() else "cpu"), ())

    def call(*args: Tensor) -> Any:
        with use_backend(request):
            return function(*args)

    return call


def _build(params: list[Parameter]) -> Muon:
    return Muon(params, lr=LR, weight_decay=WEIGHT_DECAY)


def _build_squaring(params: list[Parameter]) -> Muon:
    return Muon(params, lr=LR, weight_decay=WEIGHT_DECAY, method="squaring")


def _orthogonalizer(backend: str) -> Orthogonalizer:
    return Orthogonalizer(
        f"ours-{backend}", promise(), ours=True, tier=_tier(backend), load=lambda: _on(backend, orthogonalize)
    )


def _stepper(backend: str) -> Stepper:
    return Stepper(
        f"ours-{backend}",
        promise(),
        ours=True,
        tier=_tier(backend),
        build=_build,
        wrap=lambda step: _on(backend, step),
        rule=scaling.original,
    )


def _tier(backend: str) -> int:
    return int(backend == "reference")


ORTHOGONALIZERS = [
    Orthogonalizer("ours", promise(), ours=True, tier=0, load=lambda: orthogonalize),
    *map(_orthogonalizer, backends.NAMES),
    Orthogonalizer(
        "ours-squaring",
        SQUARING,
        ours=True,
        tier=0,
        comparable=False,
        load=lambda: partial(orthogonalize, method="squaring"),
    ),
]

STEPPERS = [
    Stepper("ours", promise(), ours=True, tier=0, build=_build, rule=scaling.original),
    *map(_stepper, backends.NAMES),
    Stepper(
        "ours-squaring",
        SQUARING,
        ours=True,
        tier=0,
        comparable=False,
        build=_build_squaring,
        rule=scaling.original,
    ),
]
