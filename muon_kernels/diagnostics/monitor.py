"""Spectra of weights, momenta and updates while a model trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..matrices import split
from .spectrum import METHODS, Method, spectra
from .writers import Record, Writer

MOMENTUM_KEYS = ("momentum_buffer", "exp_avg")


class SpectrumMonitor:
    """Records spectra at every `every`-th step of an optimizer, until `close`.

    Each record holds step (from 1), parameter, quantity and the fields of `Spectrum`. The quantities are

    - "weight": after the step;
    - "momentum": the optimizer's running mean of gradients, where it keeps one;
    - "update": what the step took off the weight, decoupled weight decay apart: (1 - lr wd) p_before - p_after. It
      includes lr and what rounding did to the weight.

    Parameters are the matrices that the optimizer steps: with `Muon`, those of the group's layout (two or more are
    named parameter[i]); elsewhere trailing dimensions count as one, and vectors are left out. They have names if
    the optimizer was given `named_parameters()`, otherwise numbers.

    Between records it costs a counter. A recorded step copies the parameters, in float32 at least, and computes and
    waits as `spectra` does.

    Args:
        optimizer: any torch optimizer. Parameters must be whole on this process.
        every: steps between records.
        writer: `JsonLines`, `Csv`, `TensorBoard`, `WandB` or anything with their `write`. None: only `records` is kept.
        method: of `spectra`.

    Raises:
        ValueError: `every` below 1, or an unknown method.
    """

    def __init__(
        self, optimizer: Optimizer, every: int = 100, writer: Writer | None = None, method: Method | None = None
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be >= 1, got {every}")
        if method is not None and method not in METHODS:
            raise ValueError(f"method must be None or one of {', '.join(METHODS)}, got {method!r}")
        self.records: list[Record] = []
        """The records of the latest recorded step."""
        self._optimizer = optimizer
        self._every = every
        self._writer = writer
        self._method = method
        self._step = 0
        self._before: dict[Tensor, Tensor] = {}
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def close(self) -> None:
        """Stops recording."""
        while self._handles:
            self._handles.pop().remove()

    def _before_step(self, *_: Any) -> None:
        self._step += 1
        if self._step % self._every == 0:
            for group in self._optimizer.param_groups:
                if group["params"]:
                    self._before |= _shrunk(group["params"], 1 - self._decay(group))

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        if self._step % self._every:
            return
        labels: list[Record] = []
        matrices = []
        for parameter, quantity, matrix in self._matrices():
            labels.append({"step": self._step, "parameter": parameter, "quantity": quantity})
            matrices.append(matrix)
        self._before = {}
        found = spectra(matrices, self._method)
        self.records = [label | s._asdict() for label, s in zip(labels, found, strict=True)]
        if self._writer is not None:
            self._writer.write(self.records)

    def _matrices(self) -> Iterator[tuple[str, str, Tensor]]:
        """Parameter, quantity and matrix of everything that is recorded."""
        number = 0
        for group in self._optimizer.param_groups:
            names = group.get("param_names") or range(number, number + len(group["params"]))
            number += len(group["params"])
            for name, p in zip(names, group["params"], strict=True):
                if p.numel() == 0 or not (p.ndim >= 2 or group.get("use_muon", False)):
                    continue
                quantities = {"weight": p.detach()}
                state = self._optimizer.state.get(p, {})  # [p] would make an entry for a parameter without one
                for key in MOMENTUM_KEYS:
                    if state.get(key) is not None:
                        quantities["momentum"] = state[key]
                if group.get("momentum_store") is not None and group["momentum_store"].codes_key in state:
                    quantities["momentum"] = group["momentum_store"].dequantized(state, group["layout"])
                if p.grad is not None:
                    quantities["update"] = self._before[p] - p
                for quantity, tensor in quantities.items():
                    views = _views(tensor, group)
                    for i, view in enumerate(views):
                        yield (f"{name}[{i}]" if len(views) > 1 else str(name)), quantity, view

    def _decay(self, group: dict[str, Any]) -> float:
        """lr * weight_decay where the optimizer shrinks weights by it, apart from their gradients."""
        muon = "use_muon" in group or isinstance(self._optimizer, torch.optim.Muon)
        decoupled = muon or group.get("decoupled_weight_decay", False)
        return float(group["lr"]) * float(group["weight_decay"]) if decoupled else 0.0


@torch.no_grad()
def _shrunk(params: list[Tensor], factor: float) -> dict[Tensor, Tensor]:
    """factor * p of every parameter, in float32 at least; in as few launches as torch can."""
    exact = [p.detach().to(torch.promote_types(p.dtype, torch.float32)) for p in params]
    return dict(zip(params, torch._foreach_mul(exact, factor), strict=True))


def _views(tensor: Tensor, group: dict[str, Any]) -> list[Tensor]:
    if group.get("use_muon", False):
        return split(tensor, group["layout"])
    return [tensor.flatten(1)]
