"""A model's matrices under one optimizer, in a layout on all ranks or whole on each, with the same random numbers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from muon_kernels import Muon
from muon_kernels.distributed.models import MODELS, Transformer

from .cells import Shape
from .layouts import FSDP, LAYOUTS, Layout
from .peers.base import LR, WEIGHT_DECAY
from .peers.dion import build as build_dion
from .timing import random_normal

Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Column:
    """An optimizer, built for parameters that lie in a layout or, with None, whole in one process.

    momentum: its name in the state of a parameter.
    compiles: for every list of equal tensors, which takes minutes where they are many: only what is short is measured.
    """

    name: str
    ours: bool
    build: Callable[[list[Parameter], Layout | None], Optimizer]
    momentum: str = "momentum_buffer"
    compiles: bool = False


def _ours(params: list[Parameter], layout: Layout | None) -> Optimizer:
    return Muon(params, lr=LR, weight_decay=WEIGHT_DECAY, **(layout.optimizer_options() if layout else {}))


def _torch(params: list[Parameter], layout: Layout | None) -> Optimizer:
    return torch.optim.Muon(params, lr=LR, weight_decay=WEIGHT_DECAY)


def _dion(params: list[Parameter], layout: Layout | None) -> Optimizer:
    """With the coefficients whose chain is not under torch.compile: the default's kernels are compiled and timed again
    for every list there, for minutes."""
    mesh = layout.mesh(params[0].device.type) if layout else None
    return build_dion(distributed_mesh=mesh, use_triton=True, use_polar_express=False)(params)


OURS = Column("ours", True, _ours)
TORCH = Column("torch.optim.Muon", False, _torch)
DION = Column("dion-triton", False, _dion, momentum="momentum", compiles=True)

PAIRS = [*((OURS, layout) for layout in LAYOUTS), (DION, FSDP), (TORCH, FSDP)]
"""What is checked and timed, in order of importance."""

SHORT_LAYERS = 4

MODEL_CELLS = [
    ("llama-8b", MODELS["llama-8b"], torch.bfloat16),
    ("4 layers of llama-8b", MODELS["llama-8b"]._replace(layers=SHORT_LAYERS), torch.bfloat16),
    ("gpt2", MODELS["gpt2"], torch.float32),
]
"""In order of importance; 8 B parameters with gradients and momenta fit one GPU of 80 GB in 16 bit."""

SMOKE_CELLS = [("tiny", Transformer(1, 32, 16, 64, gated=False), torch.float32)]


class Shared:
    """Parameters and gradients; every rank draws the whole of each from the same seed and keeps its part."""

    def __init__(
        self, device: torch.device, column: Column, layout: Layout | None, shapes: Shapes, dtype: torch.dtype
    ) -> None:
        self._device, self._layout, self._shapes, self._dtype = device, layout, shapes, dtype
        self._momentum = column.momentum
        self._mesh = layout.mesh(device.type) if layout else None
        self.params = [Parameter(self._draw(name, 0.02, i)) for i, name in enumerate(shapes)]
        self.set_grads(0)
        self.optimizer = column.build(self.params, layout)

    def set_grads(self, step: int) -> None:
        """Those of a step."""
        for i, (p, name) in enumerate(zip(self.params, self._shapes, strict=True)):
            p.grad = self._draw(name, 1.0, 1000 * (step + 1) + i)

    def tensors(self) -> Iterator[Tensor]:
        """Parameters and momenta in turn."""
        for p in self.params:
            yield p.detach()
            yield self.optimizer.state[p][self._momentum]

    def _draw(self, name: str, scale: float, seed: int) -> Tensor:
        whole = random_normal(self._device, self._shapes[name], self._dtype, seed).mul_(scale)
        return whole if self._layout is None else self._layout.put(name, whole, self._mesh)


@dataclass(frozen=True)
class Difference:
    """Between what this rank holds and its part of what one process holds.

    elements: compared; differing: of those. squares: of the differences of parameters; way: of the distances that the
    parameters of one process have gone.
    """

    elements: int = 0
    differing: int = 0
    squares: float = 0.0
    way: float = 0.0

    def __add__(self, other: Difference) -> Difference:
        return Difference(*map(operator.add, astuple(self), astuple(other)))


def compare(many: Shared, alone: Shared, steps: int) -> Difference:
    """Steps both with the same gradients."""
    start = [p.detach().clone() for p in alone.params]
    for step in range(steps):
        for whose in (many, alone):
            whose.set_grads(step)
            whose.optimizer.step()
    elements = differing = 0
    squares = way = 0.0
    for i, (found, whole) in enumerate(zip(many.tensors(), alone.tensors(), strict=True)):
        expected = _part(whole, found)
        here = found.to_local() if isinstance(found, DTensor) else found
        elements += here.numel()
        differing += int((here != expected).sum())
        if i % 2 == 0:
            squares += float((here.double() - expected.double()).square().sum())
            way += float((expected.double() - _part(start[i // 2], found).double()).square().sum())
    return Difference(elements, differing, squares, way)


def _part(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, as `like` lies."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()
