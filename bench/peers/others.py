"""Packages not the fastest in any cell so far: timm, optimuon, emerging-optimizers, heavyball, muon, Turbo."""

from __future__ import annotations

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from muon_kernels import scaling
from muon_kernels.coefficients import resolve_coefficients

from ..gate import Promise
from .base import LR, WEIGHT_DECAY, Orthogonalize, Orthogonalizer, Stepper, imported, promise
from .dion import TURBO_ROWS

QUINTIC = promise("quintic")


def _load_timm() -> Orthogonalize:
    zeropower_via_newtonschulz = imported("timm.optim.muon", "zeropower_via_newtonschulz")

    rows = list(resolve_coefficients("quintic", 5))
    return lambda g: zeropower_via_newtonschulz(g, 5, rows)


def _timm_optimizer(params: list[Parameter]) -> Optimizer:
    Muon = imported("timm.optim.muon", "Muon")

    return Muon(params, lr=LR, weight_decay=WEIGHT_DECAY, nesterov=True, adjust_lr_fn="original")


def _load_optimuon() -> Orthogonalize:
    gram_newton_schulz_batched = imported("optimuon", "gram_newton_schulz_batched")

    return lambda g: gram_newton_schulz_batched(list(g))


def _optimuon_optimizer(params: list[Parameter]) -> Optimizer:
    Muon = imported("optimuon", "Muon")

    # NorMuon and cautious decay are on by default there; off, its step is Muon's.
    return Muon(params, lr=LR, weight_decay=WEIGHT_DECAY, normuon=False, cautious_wd=False)


def _load_emerging() -> Orthogonalize:
    import torch

    newton_schulz = imported("emerging_optimizers.orthogonalized_optimizers.muon_utils", "newton_schulz")

    def call(g: Tensor) -> Tensor:
        # It takes float32 and chooses its precision by this global setting, as its own optimizer does.
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            return newton_schulz(g.float(), 5)
        finally:
            torch.set_float32_matmul_precision(before)

    return call


def _emerging_optimizer(params: list[Parameter]) -> Optimizer:
    Muon = imported("emerging_optimizers.orthogonalized_optimizers", "Muon")

    return Muon(params, lr=LR, weight_decay=WEIGHT_DECAY, nesterov=True)


def _load_heavyball() -> Orthogonalize:
    zeropower_via_newtonschulz5 = imported("heavyball.utils", "zeropower_via_newtonschulz5")

    return zeropower_via_newtonschulz5


def _heavyball_optimizer(params: list[Parameter]) -> Optimizer:
    Muon = imported("heavyball", "Muon")

    return Muon(params, lr=LR, weight_decay=WEIGHT_DECAY)


def _keller_jordan_optimizer(params: list[Parameter]) -> Optimizer:
    SingleDeviceMuon = imported("muon", "SingleDeviceMuon")

    return SingleDeviceMuon(params, lr=LR, weight_decay=WEIGHT_DECAY)


def _load_turbo() -> Orthogonalize:
    newton_schulz_triton_aol = imported("newton_schulz_triton", "newton_schulz_triton_aol")

    return newton_schulz_triton_aol


ORTHOGONALIZERS = [
    Orthogonalizer("timm", QUINTIC, load=_load_timm),
    Orthogonalizer("optimuon", promise("polar_express_dion", norm_factor=1.02), load=_load_optimuon),
    Orthogonalizer("emerging-optimizers", QUINTIC, load=_load_emerging),
    Orthogonalizer("heavyball", QUINTIC, compiles=True, load=_load_heavyball),
    Orthogonalizer("flash-newton-schulz", Promise(TURBO_ROWS, rescale="aol"), comparable=False, load=_load_turbo),
]

STEPPERS = [
    Stepper("timm", QUINTIC, build=_timm_optimizer, rule=scaling.original),
    Stepper(
        "optimuon",
        promise("polar_express_dion", norm_factor=1.02),
        build=_optimuon_optimizer,
        rule=scaling.original,
    ),
    Stepper("emerging-optimizers", QUINTIC, build=_emerging_optimizer, rule=scaling.max_dim),
    Stepper("heavyball", QUINTIC, compiles=True, build=_heavyball_optimizer, capturable=False),
    Stepper("keller-jordan", promise(), build=_keller_jordan_optimizer, rule=scaling.original),
]
