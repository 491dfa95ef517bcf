"""The columns of the tables. Every package is imported only when its turn comes; one that is missing is recorded."""

from . import baselines, dion, gram_newton_schulz, others, ours
from .base import Orthogonalizer, Provider, Stepper

__all__ = ["ORTHOGONALIZERS", "STEPPERS", "Orthogonalizer", "Provider", "Stepper"]

_MODULES = (ours, baselines, gram_newton_schulz, dion, others)

ORTHOGONALIZERS: list[Orthogonalizer] = [provider for module in _MODULES for provider in module.ORTHOGONALIZERS]
STEPPERS: list[Stepper] = [provider for module in _MODULES for provider in module.STEPPERS]
