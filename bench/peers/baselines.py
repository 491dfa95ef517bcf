"""What needs only torch: the SVD, Newton-Schulz in plain torch (eager and compiled), and torch.optim.Muon."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from muon_kernels import scaling
from muon_kernels.coefficients import ORIGINAL

from ..cells import MatrixCell, StepCell
from .base import LR, WEIGHT_DECAY, Orthogonalize, Orthogonalizer, Stepper, imported, promise

LARGEST_SVD = 2048


def newton_schulz(g: Tensor) -> Tensor:
    """Five steps in bfloat16 as one writes them first: batched, unfused."""
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = ORIGINAL
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def svd(g: Tensor) -> Tensor:
    """The exact polar factor."""
    u, _, vh = torch.linalg.svd(g.float(), full_matrices=False)
    return u @ vh


def _svd_refuses(cell: MatrixCell | StepCell) -> str | None:
    if isinstance(cell, MatrixCell) and cell.batch * min(cell.rows, cell.cols) <= LARGEST_SVD:
        return None
    return "an SVD of so much takes too long"


def _load_torch_muon() -> Orthogonalize:
    orthogonalize = imported("torch.optim._muon", "_zeropower_via_newtonschulz")

    return lambda g: [orthogonalize(matrix, ORIGINAL, 5, 1e-7) for matrix in g]


def _torch_muon_optimizer(params: list[Parameter]) -> Optimizer:
    return torch.optim.Muon(params, lr=LR, weight_decay=WEIGHT_DECAY)


ORTHOGONALIZERS = [
    Orthogonalizer("torch.optim.Muon", promise(), tier=0, load=_load_torch_muon),
    Orthogonalizer("eager", promise(), load=lambda: newton_schulz),
    Orthogonalizer(
        "torch.compile",
        promise(),
        compiles=True,
        load=lambda: torch.compile(newton_schulz, fullgraph=True, dynamic=False),
    ),
    Orthogonalizer("svd", None, capturable=False, refuses=_svd_refuses, load=lambda: svd),
]

STEPPERS = [Stepper("torch.optim.Muon", promise(), tier=0, build=_torch_muon_optimizer, rule=scaling.original)]
