"""What an owner's chains start from: matrices assembled from the pieces that arrived, or the pieces where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import dispatch
from ..orthogonalize import Orthogonalizer
from . import views
from .exchange import Segment


class Inputs(NamedTuple):
    """Arguments of `Orthogonalizer.run` and `factors`: a problem list, its squared norms, and where it goes."""

    matrices: list[Tensor]
    sumsq: Tensor | None
    into: list[Tensor] | None


def inputs(chain: Orthogonalizer, gathered: Tensor, arrived: Sequence[Sequence[Segment]]) -> Inputs:
    """Of the matrices of a chain, in the order of its groups.

    Args:
        gathered: the buffer that their pieces arrived in.
        arrived: the pieces of each matrix, which together are all of it.
    """
    pieces = views.read_all(gathered, arrived)
    if not reads_pieces(chain, pieces):
        matrices = chain.inputs
        views.copy(views.within(matrices, arrived), pieces)
        return Inputs(matrices, None, None)
    problems = [piece[None] for piece in pieces]
    sums = torch.empty(len(pieces), dtype=torch.float64, device=gathered.device)
    dispatch.run("sum_squares", problems, sums)
    # For each piece the sum over its matrix, added up in the order of the plan, and with no word from the device.
    of_matrix = [own.sum(0, keepdim=True).expand_as(own) for own in sums.split([len(own) for own in arrived])]
    return Inputs(problems, torch.cat(of_matrix), [piece[None] for piece in views.within(chain.normalised, arrived)])


def reads_pieces(chain: Orthogonalizer, pieces: Sequence[Tensor]) -> bool:
    """Whether pieces are normalised where they lie.

    That saves a copy of every piece and takes one launch more for each matrix, to add up sums, so pieces have to be
    large in the mean. (Small matrices that are whole are summed and normalised in one launch.) On a CPU matrices are
    assembled: one process adds up their squares in an order that sums of pieces do not keep, and its bits are promised
    there. On GPUs the order differs in any case, which shows in the last bits of a float64.
    """
    if chain.plan is None or pieces[0].is_cpu:
        return False
    elements = sum(count * rows * cols for _, count, rows, cols, *_ in chain.plan.normalised)
    return elements >= views.LARGE_PIECE * len(pieces)
