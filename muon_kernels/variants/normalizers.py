"""Normalisers: an orthogonalised update over the root of its running second moment, at the Frobenius norm it had.

With O the orthogonalised update [rows, cols], beta2 in [0, 1), and s(O) what the normaliser makes of O's squares:

    v <- beta2 v + (1 - beta2) s(O),    N = O / (sqrt(v) + eps),    update = N |O| / |N|

v starts at zero. The norm makes a correction of that bias needless, as it would be a factor of N, and leaves the rules
for lr (`adjust_lr_fn`) their meaning: "match_rms_adamw" gives the root mean square 0.2 of the papers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..distributed.dtensors import is_dtensor
from ..matrices import Layout, ordered_like, split


@dataclass(frozen=True)
class Normalizer(ABC):
    """What `NorMuon` and `AdaMuon` share. Immutable; the state is kept with the parameter.

    Args:
        beta2: decay of the second moment, in [0, 1).
        eps: added to the root of the second moment, > 0.

    Raises:
        ValueError: an argument that is out of its range, by name and value.
    """

    beta2: float = 0.95
    eps: float = 1e-8

    key: ClassVar[str]
    """Where the second moment is in the parameter's state."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta2 < 1.0:
            raise ValueError(f"beta2 must be in [0, 1), got {self.beta2}")
        if not 0.0 < self.eps < math.inf:  # a row that never had a gradient has the root 0
            raise ValueError(f"eps must be > 0 and finite, got {self.eps}")

    def moments(self, state: dict[str, Any], param: Tensor, layout: Layout) -> list[Tensor]:
        """The second moment of every matrix of a parameter: views of the tensor that `state` has or is given.

        That tensor is float32, and float64 if `param` is; zero at first. ValueError if it has not the shape that the
        parameter and its layout ask for.
        """
        device = param.device
        if is_dtensor(param):  # what is kept of a DTensor is whole on every rank
            param = torch.empty(param.shape, dtype=param.dtype, device="meta")
        shape = self.shape(param, layout)
        if self.key not in state:
            dtype = torch.promote_types(param.dtype, torch.float32)
            state[self.key] = torch.zeros(shape, dtype=dtype, device=device)
        if state[self.key].shape != shape:
            raise ValueError(
                f"{self.key} of a parameter of shape {list(param.shape)} with layout {layout!r} must have shape "
                f"{list(shape)}, got {list(state[self.key].shape)}"
            )
        return self._views(state, param, layout)

    def run(
        self, batches: Sequence[Tensor], moments: Sequence[Tensor], found_inf: Tensor | None = None
    ) -> list[Tensor]:
        """Moves the second moments and returns the normalised updates.

        Args:
            batches: problem list [count, rows, cols] of orthogonalised updates; not written.
            moments: of every matrix of `batches`, in their order; updated in place.
            found_inf: one float32; nonzero leaves the moments as they were.

        Returns:
            A problem list like `batches`, in the moments' dtype.
        """
        normalized = []
        first = 0
        for batch in batches:
            mine = list(moments[first : first + len(batch)])
            first += len(batch)
            old = torch.stack(mine)
            update = batch.to(old.dtype)
            moment = torch.lerp(old, self._reduced(update.square()), 1 - self.beta2)
            scaled = update / moment.sqrt().add_(self.eps)
            # No update, no direction: zero stays zero.
            norm = _frobenius(scaled).clamp_min_(torch.finfo(old.dtype).tiny)
            normalized.append(scaled.mul_(_frobenius(update) / norm))
            kept = moment if found_inf is None else torch.where(found_inf != 0, old, moment)
            torch._foreach_copy_(mine, list(kept.unbind(0)))
        return normalized

    @abstractmethod
    def shape(self, param: Tensor, layout: Layout) -> torch.Size:
        """Of the tensor in the parameter's state."""

    @abstractmethod
    def _views(self, state: dict[str, Any], param: Tensor, layout: Layout) -> list[Tensor]:
        """One view of the state for every matrix, of the shape that `_reduced` gives it."""

    @abstractmethod
    def _reduced(self, squares: Tensor) -> Tensor:
        """s(O) of [count, rows, cols]."""


@dataclass(frozen=True)
class NorMuon(Normalizer):
    """NorMuon: s(O) is the mean square of every row, so that all neurons move alike far.

    State: "row_exp_avg_sq", one number a row, [rows of all matrices of the parameter].

    https://arxiv.org/abs/2510.05491, with the norm kept as in https://github.com/microsoft/dion
    """

    key: ClassVar[str] = "row_exp_avg_sq"

    def shape(self, param: Tensor, layout: Layout) -> torch.Size:
        return torch.Size([sum(matrix.shape[0] for matrix in split(param, layout))])

    def _views(self, state: dict[str, Any], param: Tensor, layout: Layout) -> list[Tensor]:
        return list(state[self.key][:, None].split([matrix.shape[0] for matrix in split(param, layout)]))

    def _reduced(self, squares: Tensor) -> Tensor:
        return squares.mean(dim=2, keepdim=True)


@dataclass(frozen=True)
class AdaMuon(Normalizer):
    """AdaMuon: s(O) is the square of every element.

    State: "exp_avg_sq", of the parameter's shape. As in timm, the momentum is orthogonalised as it is; the paper takes
    its signs first.

    https://arxiv.org/abs/2507.11005
    """

    key: ClassVar[str] = "exp_avg_sq"

    def shape(self, param: Tensor, layout: Layout) -> torch.Size:
        return param.shape

    def _views(self, state: dict[str, Any], param: Tensor, layout: Layout) -> list[Tensor]:
        state[self.key] = ordered_like(param, state[self.key])
        return split(state[self.key], layout)

    def _reduced(self, squares: Tensor) -> Tensor:
        return squares


def check_normalizer(normalizer: Any) -> None:
    """Raises TypeError for what is neither None nor a `Normalizer`."""
    if normalizer is not None and not isinstance(normalizer, Normalizer):
        raise TypeError(f"normalizer must be None, NorMuon(...) or AdaMuon(...), got {normalizer!r}")


def _frobenius(batch: Tensor) -> Tensor:
    return torch.linalg.vector_norm(batch, dim=(1, 2), keepdim=True)


# A checkpoint holds the options of its groups, and torch.load(weights_only=True) shall read it.
torch.serialization.add_safe_globals([NorMuon, AdaMuon])
