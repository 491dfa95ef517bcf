"""What the optimizer tests share: parameters, gradients, and a float64 copy of the algorithm."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SHAPES = [(64, 64), (128, 64), (64, 200), (33, 7), (1, 9), (9, 1), (10, 128), (24, 24)]


def make_params(dtype: torch.dtype, shapes=SHAPES, seed: int = 1) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter((torch.randn(s, generator=generator) * 0.02).to(dtype)) for s in shapes]


def set_grads(params: list[nn.Parameter], step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = (torch.randn(p.shape, generator=generator) * scale).to(p.dtype).to(p.device)


def run(optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> list[Tensor]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(first, first + steps):
        set_grads(params, step)
        optimizer.step()
    return [p.detach().clone() for p in params]


class Float64Muon:
    """Muon by its formula, in float64 whatever the parameters' dtype; one (a, b, c) for every step."""

    def __init__(self, params, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True, row=(3.4445, -4.7750, 2.0315),
                 eps=1e-7, ns_steps=5):  # fmt: skip
        self.params = [p.detach().to(torch.float64, copy=True) for p in params]
        self.buffers = [torch.zeros_like(p) for p in self.params]
        self.lr, self.weight_decay, self.momentum, self.nesterov = lr, weight_decay, momentum, nesterov
        self.row, self.eps, self.ns_steps = row, eps, ns_steps

    def step(self, grads):
        for p, m, g in zip(self.params, self.buffers, grads, strict=True):
            x = self.orthogonalized(m, g.double())
            rows, cols = p.shape
            p.mul_(1 - self.lr * self.weight_decay).sub_(self.lr * math.sqrt(max(1, rows / cols)) * x)

    def orthogonalized(self, m, g):
        """Moves the momentum m toward g and returns what becomes of it."""
        a, b, c = self.row
        m.mul_(self.momentum).add_(g, alpha=1 - self.momentum)
        x = self.momentum * m + (1 - self.momentum) * g if self.nesterov else m.clone()
        x /= max(x.norm().item(), self.eps)
        for _ in range(self.ns_steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x
