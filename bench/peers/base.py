"""What a column of the tables is: a way to orthogonalise, or a way to step a model."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from muon_kernels.coefficients import ORIGINAL, resolve_coefficients
from muon_kernels.scaling import Rule

from ..cells import MatrixCell, StepCell
from ..gate import Promise

Orthogonalize = Callable[[Tensor], Tensor | Sequence[Tensor]]
"""[batch, rows, cols] to the same, or to a list of matrices if that is what the package returns."""

Step = Callable[..., object]

LR = 0.02
WEIGHT_DECAY = 0.1


@dataclass(frozen=True)
class Provider:
    """A column.

    name: unique, also its prefix for --providers.
    promise: the polynomial it claims to compute; None for the polar factor.
    ours: muon_kernels itself.
    tier: 0 is measured in every cell before anything of tier 1 is.
    capturable: its call can be captured in a CUDA graph.
    compiles: it goes through torch.compile, whose caches are emptied for every cell.
    comparable: it does the work of the others; one that does fewer steps is shown apart.
    refuses: why it is not run on a cell, or None.
    """

    name: str
    promise: Promise | None
    ours: bool = False
    tier: int = 1
    capturable: bool = True
    compiles: bool = False
    comparable: bool = True
    refuses: Callable[[MatrixCell | StepCell], str | None] = lambda cell: None

    def why_not(self, cell: MatrixCell | StepCell, mode: str) -> str | None:
        """The rule by which a measurement is left out, or None."""
        if mode == "graph" and not self.capturable:
            return "cannot be captured in a CUDA graph"
        return self.refuses(cell)

    def as_info(self) -> dict[str, Any]:
        """For the results file."""
        return {"provider": self.name, "ours": self.ours, "comparable": self.comparable}


@dataclass(frozen=True, kw_only=True)
class Orthogonalizer(Provider):
    """`load` imports and prepares; it raises ImportError or Absent if it cannot run here."""

    load: Callable[[], Orthogonalize]


@dataclass(frozen=True, kw_only=True)
class Stepper(Provider):
    """`build` makes the optimizer, with lr LR and weight decay WEIGHT_DECAY.

    wrap: turns its step function into the one that is timed.
    rule: how its lr follows the shape; None if its scale is its own affair, then only the direction is checked.
    """

    build: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
    wrap: Callable[[Step], Step] = lambda step: step
    rule: Rule | None = None


def imported(module: str, name: str) -> Any:
    """An attribute of a package that may be missing: ImportError then. Type checkers know none of these packages."""
    return getattr(importlib.import_module(module), name)


def promise(preset: str | tuple[float, float, float] = ORIGINAL, steps: int = 5, norm_factor: float = 1.0) -> Promise:
    """Five steps of a preset of muon_kernels, which holds the rows of the other packages too."""
    return Promise(resolve_coefficients(preset, steps), norm_factor)
