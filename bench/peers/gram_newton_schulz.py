"""gram-newton-schulz 0.1.6 (Dao-AILab): CuTe kernels on and off; it compiles itself and replays its own CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

from torch.nn import Parameter
from torch.optim import Optimizer

from .base import LR, WEIGHT_DECAY, Orthogonalize, Orthogonalizer, Stepper, imported, promise

PROMISE = promise("polar_express_1.05")


def _load(kernels: bool) -> Callable[[], Orthogonalize]:
    def load() -> Orthogonalize:
        GramNewtonSchulz = imported("gram_newton_schulz", "GramNewtonSchulz")

        return GramNewtonSchulz(ns_use_kernels=kernels)

    return load


def _build(kernels: bool) -> Callable[[list[Parameter]], Optimizer]:
    def build(params: list[Parameter]) -> Optimizer:
        Muon = imported("gram_newton_schulz", "Muon")

        # Its default restart, given by hand: the search for it prints and takes seconds.
        options = {"gram_newton_schulz_restart_iterations": [2], "adjust_lr": None}
        return Muon(params, lr=LR, weight_decay=WEIGHT_DECAY, ns_use_kernels=kernels, **options)

    return build


def _no_scale(shape: object) -> float:
    return 1.0


ORTHOGONALIZERS = [
    Orthogonalizer("gns-kernels", PROMISE, tier=0, capturable=False, compiles=True, load=_load(True)),
    Orthogonalizer("gns-torch", PROMISE, capturable=False, compiles=True, load=_load(False)),
]

STEPPERS = [
    Stepper("gns-kernels", PROMISE, tier=0, capturable=False, compiles=True, build=_build(True), rule=_no_scale),
    Stepper("gns-torch", PROMISE, capturable=False, compiles=True, build=_build(False), rule=_no_scale),
]
