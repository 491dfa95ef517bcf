"""Loading a checkpoint so that training goes on bit by bit."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import Optimizer


class ExactStateOptimizer(Optimizer):
    """An optimizer whose state keeps its dtypes when it is loaded; torch casts it to the parameters'."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.load_state_dict`, but every tensor is a copy in the dtype it was saved in, and
        options that were not saved stay as they are."""
        loaded: dict[str, Any] = {}  # what the registered pre-hooks made of state_dict, completed

        def complete(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
            saved = state["param_groups"]
            if len(saved) == len(self.param_groups):  # otherwise torch raises
                saved = [group | old for group, old in zip(self.param_groups, saved, strict=True)]
            loaded.update(state | {"param_groups": saved})
            return loaded

        handle = self.register_load_state_dict_pre_hook(complete)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        saved = loaded["state"]
        ids = (i for group in loaded["param_groups"] for i in group["params"])
        params = (p for group in self.param_groups for p in group["params"])
        for i, p in zip(ids, params, strict=True):
            for key, value in saved.get(i, {}).items():
                if isinstance(value, Tensor):
                    self.state[p][key] = value.detach().to(p.device, copy=True)
