"""What a step writes to: the parameters themselves, or copies of higher precision that they are rounded from.

A bfloat16 parameter keeps 8 bits: a step below 1/256 of its value is lost. The copy ("master" in the parameter's state)
accumulates such steps exactly. Mixed-precision training, https://arxiv.org/abs/1710.03740, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .distributed.dtensors import local

States = Mapping[Tensor, dict[str, Any]]


class Masters:
    """Opens the copies before a step and rounds them back after it. Those of DTensors lie as they do.

    A parameter that was changed in between (a model's `load_state_dict`) wins over its copy, value by value. It is seen
    by its version counter, which `param.data` bypasses; a compiler cannot trace that and compares the values always.
    """

    def __init__(self) -> None:
        self._written = WeakTensorKeyDictionary()  # parameter -> its version when it was last rounded from its copy

    def open(self, params: list[Tensor], states: States, dtype: torch.dtype | None) -> list[Tensor]:
        """The tensors to step: `params` without a dtype, else a copy for each parameter with fewer bits than it."""
        if dtype is None:
            return params
        return [self._open(p, states[p], dtype) if stepped_dtype(p, dtype) != p.dtype else p for p in params]

    def close(self, params: list[Tensor], targets: list[Tensor]) -> None:
        """Rounds the copies into their parameters."""
        if targets is params:
            return
        copied = [(p, target) for p, target in zip(params, targets, strict=True) if target is not p]
        if copied:
            torch._foreach_copy_([local(p.detach()) for p, _ in copied], [local(target) for _, target in copied])
        if not torch.compiler.is_compiling():
            for p, _ in copied:
                self._written[p] = p._version

    def _open(self, p: Tensor, state: dict[str, Any], dtype: torch.dtype) -> Tensor:
        master = state.get("master")
        if master is None:
            state["master"] = master = p.detach().to(dtype, memory_format=torch.preserve_format)
        elif torch.compiler.is_compiling() or self._written.get(p) != p._version:
            mine, theirs = local(master), local(p.detach())
            mine.copy_(torch.where(theirs == mine.to(p.dtype), mine, theirs.to(mine.dtype)))
        return master


def stepped_dtype(p: Tensor, master_dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of what is stepped of a parameter."""
    return p.dtype if master_dtype is None or p.dtype.itemsize >= master_dtype.itemsize else master_dtype
