"""Before a step changes anything its ranks compare notes, so that an error on one of them is an error on all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .errors import RankFailed, RanksDisagree
from .layout import Mesh, Parameter, local_shape, replica_sets
from .team import Team

_TEXT_BYTES = 512


@dataclass(frozen=True)
class Note:
    """What a rank says of itself.

    parameters: descriptions of its parameters, in order.
    options: how they are stepped.
    plans: digests of what was planned for them.
    grads: whether each parameter has a gradient here.
    error: what is wrong with its input; empty if nothing is.
    """

    parameters: tuple[Parameter, ...]
    options: str
    plans: str
    grads: tuple[bool, ...]
    error: str = ""


def roll_call(team: Team, note: Note) -> tuple[bool, ...]:
    """Exchanges notes; returns for every parameter whether any rank has its gradient.

    One all-gather of a few integers if all is well, one more if gradients differ.

    The order of the checks is the same everywhere, so that all ranks raise the same error.

    Raises:
        RankFailed: some rank's input is wrong.
        RanksDisagree: parameters, options or the gradients of replicas differ.
        CollectiveFailed: a rank is not there.
    """
    words = [bool(note.error), len(note.parameters), *map(_digest, (note.plans, note.options, repr(note.grads)))]
    heard = team.all_gather(torch.tensor(words), "the roll call before a step").numpy()
    if heard[:, 0].any():
        rank = int(heard[:, 0].argmax())
        raise RankFailed(f"rank {rank} of {team.size}: {_texts(team, note.error)[rank]}")
    counts, plans, options, grads = (column.tolist() for column in heard.T[1:])
    if len(set(counts)) > 1:
        raise RanksDisagree(
            f"ranks 0 to {team.size - 1} hold {counts} parameters for this optimizer; all must hold the same"
        )
    if len(set(plans)) > 1:
        _name_different_parameter(team, note.parameters)
    if len(set(options)) > 1:
        texts, other = _texts(team, note.options), _first_other(options)
        raise RanksDisagree(f"options differ: rank 0 has {texts[0]}, rank {other} has {texts[other]}")
    if len(set(plans)) > 1:
        raise RanksDisagree("plans of the same parameters differ: do all ranks run the same version, on equal devices?")
    if len(set(grads)) == 1:
        return note.grads
    present = team.all_gather(torch.tensor(note.grads), "comparing gradients").numpy()
    _check_replicas(team.mesh, note.parameters, present)
    return tuple(map(any, zip(*present.tolist(), strict=True)))


def _name_different_parameter(team: Team, parameters: Sequence[Parameter]) -> None:
    """Raises RanksDisagree with the first parameter that differs, as rank 0 and the first other rank have it."""
    columns = team.all_gather(torch.tensor([_digest(repr(p)) for p in parameters]), "comparing parameters").T.tolist()
    for number, (parameter, digests) in enumerate(zip(parameters, columns, strict=True)):
        if len(set(digests)) > 1:
            texts = _texts(team, f"{parameter.name} {list(parameter.shape)} {_placements(parameter)}")
            other = _first_other(digests)
            raise RanksDisagree(f"parameter number {number} is {texts[0]} on rank 0 and {texts[other]} on rank {other}")


def _first_other(values: Sequence[int]) -> int:
    """The first rank whose value is not rank 0's."""
    return next(rank for rank, value in enumerate(values) if value != values[0])


def _placements(parameter: Parameter) -> str:
    return ", ".join("Replicate" if p.dim is None else f"Shard({p.dim})" for p in parameter.param)


def _check_replicas(mesh: Mesh, parameters: Sequence[Parameter], present: np.ndarray) -> None:
    """Ranks that hold the same elements must agree, or their copies would drift apart."""
    for i, parameter in enumerate(parameters):
        for ranks in replica_sets(mesh, parameter.param).values():
            if 0 < present[ranks, i].sum() < len(ranks) and 0 not in local_shape(
                parameter, parameter.param, mesh, ranks[0]
            ):
                absent = [rank for rank in ranks if not present[rank, i]]
                raise RanksDisagree(
                    f"parameter {parameter.name} has no gradient on ranks {absent}, but others of the ranks {ranks}, "
                    "which hold the same elements of it, have one"
                )


def _texts(team: Team, mine: str) -> list[str]:
    data = mine.encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES, b"\0")
    heard = team.all_gather(torch.frombuffer(bytearray(data), dtype=torch.uint8), "exchanging messages")
    return [bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in heard]


def _digest(text: str) -> int:
    """63 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
