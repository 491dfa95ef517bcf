"""The parameters of a model, or of an optimizer's first argument, with what the rules ask about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import ParamsT


class Owner(NamedTuple):
    """A module that holds a parameter, and the parameter's name in it."""

    module: nn.Module
    name: str


class Item(NamedTuple):
    """A parameter, its full name ("" without one), its owners (several if it is tied) and its group's own options."""

    name: str
    param: Tensor
    owners: Sequence[Owner]
    options: Mapping[str, Any]


def owned(model: nn.Module) -> Iterator[Item]:
    """Every trainable parameter of a model once, under the first of its names."""
    owners: dict[int, list[Owner]] = {}
    for module in model.modules():
        for name, param in module.named_parameters(recurse=False):
            owners.setdefault(id(param), []).append(Owner(module, name))
    options: dict[str, Any] = {}
    for name, param in model.named_parameters():
        if _trains(param, name):
            yield Item(name, param, owners[id(param)], options)


def given(params: ParamsT) -> Iterator[Item]:
    """Every trainable parameter of an optimizer's first argument: parameters, named ones, or groups of either."""
    shared: dict[str, Any] = {}
    if not isinstance(params, Iterable) or isinstance(params, (Tensor, str)):
        raise TypeError(f"model must be a module, parameters or groups of them, got {type(params).__name__}")
    for entry in params:
        options = shared
        members: Any = [entry]
        if isinstance(entry, dict):
            if "params" not in entry:
                raise ValueError(f"a group must have the key 'params', got {sorted(entry)}")
            options = {key: value for key, value in entry.items() if key != "params"}
            members = [entry["params"]] if isinstance(entry["params"], Tensor) else entry["params"]
        for member in members:
            name, param = member if isinstance(member, tuple) else ("", member)
            if not isinstance(param, Tensor):
                raise TypeError(f"model must hold parameters, (name, parameter) or groups, got {type(param).__name__}")
            if _trains(param, name):
                yield Item(name, param, (), options)


def _trains(param: Tensor, name: str) -> bool:
    if is_lazy(param):
        raise TypeError(f"parameter {name or '(unnamed)'} is lazy: run the model once, so that it has a shape")
    return param.requires_grad
