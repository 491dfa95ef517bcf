"""Second moments of matrices that ranks share: whole on every rank, moved by a matrix's owner, heard by all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .plan import Plan
from .team import Team


class Moments:
    """Of the matrices of a plan.

    Args:
        views: for every assignment, its second moment, one number a row, in the state of its parameter; all of one
            dtype.
    """

    def __init__(self, team: Team, plan: Plan, views: Sequence[Tensor]) -> None:
        self._team, self._views = team, views
        self._told = [min(plan.owners(a)) for a in plan.assignments]  # the rank that everybody hears

    @property
    def dtype(self) -> torch.dtype:
        return self._views[0].dtype

    def of(self, numbers: Sequence[int]) -> list[Tensor]:
        """Those of some assignments."""
        return [self._views[n] for n in numbers]

    def share(self) -> None:
        """Collective: every rank gets what the owners made of them."""
        views = [view.view(-1) for view in self._views]
        flat = torch.cat(views)
        parts = flat.split([len(view) for view in views])
        for part, rank in zip(parts, self._told, strict=True):
            if rank != self._team.rank:
                part.zero_()
        self._team.sum(flat, "sharing second moments")
        torch._foreach_copy_(views, list(parts))
