"""Sizes of activations, by forward hooks: the coordinate check."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Activation(NamedTuple):
    """Size of a module's output over batch and units: mean |z| and sqrt(mean z^2)."""

    mean_abs: float
    rms: float


class ActivationNorms:
    """Records what modules put out while the `with` block runs; the last call of each counts.

    >>> with ActivationNorms(model) as norms:
    ...     model(inputs)
    >>> norms.read()["0"].rms

    Args:
        model: the network.
        modules: names of submodules; default: those without children that hold a matrix, whose outputs are the
            pre-activations.

    Raises:
        ValueError: a name that the model does not have, or no module at all.
    """

    def __init__(self, model: nn.Module, modules: Iterable[str] | None = None) -> None:
        every = dict(model.named_modules())
        names = [name for name, m in every.items() if _holds_matrix(m)] if modules is None else list(modules)
        unknown = [name for name in names if name not in every]
        if unknown or not names:
            raise ValueError(f"modules must name submodules of the model, got {unknown or 'none'}")
        self._modules = {name: every[name] for name in names}
        self._sizes: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> ActivationNorms:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def read(self) -> dict[str, Activation]:
        """Module -> size of its output, in the order of the calls; waits for the device once."""
        if not self._sizes:
            return {}
        table = torch.stack([size.to("cpu") for size in self._sizes.values()]).tolist()
        return {name: Activation(*row) for name, row in zip(self._sizes, table, strict=True)}

    def _hook(self, name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise TypeError(f"module {name!r} must put out a tensor, got {type(output).__name__}")
            z = output.detach().to(torch.float32 if output.dtype != torch.float64 else torch.float64)
            self._sizes[name] = torch.stack([z.abs().mean(), z.square().mean().sqrt()]).to(torch.float64)

        return record


def coordinate_check(
    model: nn.Module, inputs: Tensor, train_step: Callable[[], object], steps: int, modules: Iterable[str] | None = None
) -> list[dict[str, Activation]]:
    """Sizes of activations on the same inputs before training and after each of `steps` steps.

    A parametrisation whose learning rate transfers over width keeps them at one size whatever the width
    (https://arxiv.org/abs/2203.03466). Call it for several widths and compare.

    Args:
        model: is trained by `train_step`, which takes one optimizer step.
        inputs: what is sent through the model at every record.
        modules: as in `ActivationNorms`.

    Returns:
        steps + 1 records: module -> size.
    """
    if steps < 0:
        raise ValueError(f"steps must be >= 0, got {steps}")
    chosen = None if modules is None else list(modules)
    records = []
    for step in range(steps + 1):
        if step:
            train_step()
        with ActivationNorms(model, chosen) as norms, torch.no_grad():
            model(inputs)
        records.append(norms.read())
    return records


def layer_picks(layers: int) -> list[int]:
    """The layers that stand for a deep network: the first, those at 1/4, 1/2 and 3/4, and the last, without repeats."""
    if layers < 1:
        raise ValueError(f"layers must be >= 1, got {layers}")
    picks = (0, layers // 4 - 1, layers // 2 - 1, 3 * layers // 4 - 1, layers - 1)
    return sorted({max(0, pick) for pick in picks})


def _holds_matrix(module: nn.Module) -> bool:
    return next(module.children(), None) is None and any(p.ndim >= 2 for p in module.parameters(recurse=False))
