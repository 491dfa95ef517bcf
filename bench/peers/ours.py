"""muon_kernels as a user calls it, and with each backend by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from muon_kernels import Muon, backends, orthogonalize, scaling, use_backend

from .base import LR, WEIGHT_DECAY, Orthogonalizer, Stepper, promise


def _on(backend: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Tensor) -> Any:
        with use_backend(backend):
            return function(*args)

    return call


def _build(params: list[Parameter]) -> Muon:
    return Muon(params, lr=LR, weight_decay=WEIGHT_DECAY)


ORTHOGONALIZERS = [
    Orthogonalizer("ours", promise(), ours=True, tier=0, load=lambda: orthogonalize),
    *(
        Orthogonalizer(
            f"ours-{name}",
            promise(),
            ours=True,
            tier=int(name == "reference"),
            load=lambda name=name: _on(name, orthogonalize),
        )
        for name in backends.NAMES
    ),
]

STEPPERS = [
    Stepper("ours", promise(), ours=True, tier=0, build=_build, rule=scaling.original),
    *(
        Stepper(
            f"ours-{name}",
            promise(),
            ours=True,
            tier=int(name == "reference"),
            build=_build,
            wrap=lambda step, name=name: _on(name, step),
            rule=scaling.original,
        )
        for name in backends.NAMES
    ),
]
