"""dion (microsoft/dion 0.1.0): its Triton kernels, its four-step variant with AOL rescaling, and its Muon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.nn import Parameter
from torch.optim import Optimizer

from muon_kernels import scaling
from muon_kernels.coefficients import PRESETS

from ..gate import Promise
from .base import LR, WEIGHT_DECAY, Orthogonalize, Orthogonalizer, Stepper, imported, promise

TURBO_ROWS = PRESETS["turbo"].rows


def _load() -> Orthogonalize:
    newton_schulz_triton = imported("dion.newton_schulz_triton", "newton_schulz_triton")

    return newton_schulz_triton


def _load_turbo() -> Orthogonalize:
    newton_schulz_triton_fast = imported("dion.newton_schulz_triton", "newton_schulz_triton_fast")

    return newton_schulz_triton_fast


def build(**options: Any) -> Callable[[list[Parameter]], Optimizer]:
    """What makes its Muon with these options."""

    def build_muon(params: list[Parameter]) -> Optimizer:
        Muon = imported("dion", "Muon")

        return Muon(params, lr=LR, weight_decay=WEIGHT_DECAY, nesterov=True, **options)

    return build_muon


ORTHOGONALIZERS = [
    Orthogonalizer("dion-triton", promise("quintic"), tier=0, load=_load),
    Orthogonalizer("dion-turbo", Promise(TURBO_ROWS, rescale="aol"), comparable=False, load=_load_turbo),
]

STEPPERS = [
    Stepper(
        "dion-triton",
        promise("polar_express_dion", norm_factor=1.02),
        tier=0,
        compiles=True,
        build=build(use_triton=True),
        rule=scaling.spectral_unclamped,
    ),
    Stepper(
        "dion-gns",
        promise("polar_express_1.05"),
        compiles=True,
        build=build(use_triton=True, use_gram_newton_schulz=True),
        rule=scaling.spectral_unclamped,
    ),
]
