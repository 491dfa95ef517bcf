"""Who orthogonalises which matrix, and when: a pure function of the parameters' shapes and placements.

Every logical matrix has one owner, which receives its pieces, runs the chain and sends the result back. Owners are
chosen so that all ranks have about the same Newton-Schulz work; a matrix that some rank holds whole stays there if
balance allows. Where ranks hold the same elements (DDP, HSDP) the work is spread over them too, unless a matrix is so
small that every replica computes it sooner than it would receive it. Waves bound the memory that an exchange takes.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Literal, NamedTuple

import numpy as np

from .costs import Hardware, cheaper_redundant, ns_seconds
from .layout import Matrix, Mesh, Parameter, Placement, beside, elements, matrices, replica_sets

Kind = Literal["local", "owner", "redundant"]

DEFAULT_WAVE_BYTES = 128 * 2**20


class Assignment(NamedTuple):
    """One matrix of a plan.

    parameter: index into the plan's parameters.
    kind: "local": its owner is its only holder; "owner": it travels; "redundant": every set of replicas computes it.
    owner: a rank; of a redundant matrix, the one among the first replicas.
    wave: when.
    gathers, scatters, copies: whether pieces go to the owner, results back to its replica, and on to other replicas.
    """

    parameter: int
    matrix: Matrix
    kind: Kind
    owner: int
    wave: int
    gathers: bool
    scatters: bool
    copies: bool


@dataclass(frozen=True)
class Plan:
    """The assignments in the order in which every rank visits them, and each rank's Newton-Schulz seconds."""

    mesh: Mesh
    parameters: tuple[Parameter, ...]
    element_size: int
    assignments: tuple[Assignment, ...]
    loads: tuple[float, ...]

    @property
    def waves(self) -> int:
        """How many waves a step takes."""
        return 1 + max((a.wave for a in self.assignments), default=-1)

    @cached_property
    def digest(self) -> int:
        """63 bits that two ranks share if and, but for chance, only if their plans are equal."""
        text = repr((self.mesh, self.parameters, self.element_size, self.assignments))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

    def owner_for(self, assignment: Assignment, rank: int) -> int:
        """The rank that computes this matrix for `rank`."""
        if assignment.kind != "redundant":
            return assignment.owner
        return self._mixed(self.parameters[assignment.parameter].state, copied=rank, cut=assignment.owner)

    def owners(self, assignment: Assignment) -> list[int]:
        """Every rank that computes this matrix."""
        if assignment.kind != "redundant":
            return [assignment.owner]
        return replica_sets(self.mesh, self.parameters[assignment.parameter].state)[assignment.owner]

    def source(self, assignment: Assignment, rank: int) -> int:
        """Of the ranks that hold the same state as `rank`, the one that sends it to the owner: the owner's own replica,
        so that no element travels twice."""
        owner = self.owner_for(assignment, rank)
        return self._mixed(self.parameters[assignment.parameter].state, copied=owner, cut=rank)

    def relay(self, assignment: Assignment, rank: int) -> int:
        """Of the ranks that hold the same elements of the parameter as `rank`, the one that hears from the owner and
        tells the others."""
        owner = self.owner_for(assignment, rank)
        return self._mixed(self.parameters[assignment.parameter].param, copied=owner, cut=rank)

    def replicas(self, assignment: Assignment, rank: int) -> list[int]:
        """The ranks that hold the same elements of the parameter as `rank`, in rising order."""
        placements = self.parameters[assignment.parameter].param
        if all(placement.dim is not None for placement in placements):
            return [rank]
        sides = [range(n) if p.dim is None else (c,) for n, p, c in self._along(placements, rank)]
        return sorted(self._index[coordinate] for coordinate in product(*sides))

    def _mixed(self, placements: tuple[Placement, ...], *, copied: int, cut: int) -> int:
        """The rank with the coordinates of `copied` along the mesh dimensions that copy, else those of `cut`."""
        if all(placement.dim is not None for placement in placements):
            return cut
        return self._index[
            tuple(
                self.mesh.coordinates[copied][d] if placement.dim is None else c
                for d, (_, placement, c) in enumerate(self._along(placements, cut))
            )
        ]

    def _along(self, placements: tuple[Placement, ...], rank: int) -> Iterator[tuple[int, Placement, int]]:
        """(extent, placement, coordinate of `rank`) of every mesh dimension."""
        return zip(self.mesh.shape, placements, self.mesh.coordinates[rank], strict=True)

    @cached_property
    def _index(self) -> dict[tuple[int, ...], int]:
        return {coordinate: rank for rank, coordinate in enumerate(self.mesh.coordinates)}


class _Candidate(NamedTuple):
    """A matrix before it has an owner; sorts by falling cost."""

    negative_cost: float
    name: str
    matrix: Matrix
    parameter: int


def plan(
    mesh: Mesh,
    parameters: Sequence[Parameter],
    *,
    steps: int,
    element_size: int,
    hardware: Hardware,
    wave_bytes: int = DEFAULT_WAVE_BYTES,
) -> Plan:
    """Owners and waves for parameters that lie on one mesh.

    Args:
        mesh: the ranks.
        parameters: with distinct names.
        steps: length of the Newton-Schulz chain.
        element_size: bytes of an element that travels.
        hardware: rates to weigh work against traffic with.
        wave_bytes: bound on what any rank sends or receives in one direction of one wave; a matrix that alone exceeds
            it has a wave of its own.

    Raises:
        ValueError: two parameters of one name, or placements that do not fit the mesh.
    """
    _check(mesh, parameters, wave_bytes)
    candidates = sorted(
        _Candidate(-ns_seconds(matrix.rows, matrix.cols, steps, hardware), parameter.name, matrix, i)
        for i, parameter in enumerate(parameters)
        for matrix in matrices(parameter)
    )
    redundant = {
        candidate
        for candidate in candidates
        if _has_replicas(mesh, parameters[candidate.parameter])
        and cheaper_redundant(candidate.matrix.rows, candidate.matrix.cols, steps, hardware)
    }
    loads, owners = _assign(mesh, parameters, candidates, redundant)
    drafts = [_draft(mesh, parameters, c, owners[c], redundant=c in redundant) for c in candidates]
    assignments = _cut_waves(drafts, loads, element_size, wave_bytes)
    return Plan(mesh, tuple(parameters), element_size, tuple(assignments), tuple(loads))


def _check(mesh: Mesh, parameters: Sequence[Parameter], wave_bytes: int) -> None:
    if wave_bytes <= 0:
        raise ValueError(f"wave_bytes must be > 0, got {wave_bytes}")
    names = [parameter.name for parameter in parameters]
    if len(set(names)) != len(names):
        raise ValueError(f"parameters must have distinct names, got {sorted(n for n in names if names.count(n) > 1)}")
    for parameter in parameters:
        for placements in (parameter.state, parameter.param):
            if len(placements) != len(mesh.shape):
                raise ValueError(
                    f"{parameter.name} must have one placement for each of the mesh's {len(mesh.shape)} dimensions, "
                    f"got {len(placements)}"
                )


def _has_replicas(mesh: Mesh, parameter: Parameter) -> bool:
    return parameter.state == parameter.param and _copies(mesh, parameter.state) > 1


def _copies(mesh: Mesh, placements: tuple[Placement, ...]) -> int:
    """How many ranks hold the same elements."""
    return math.prod(side for side, placement in zip(mesh.shape, placements, strict=True) if placement.dim is None)


def _assign(
    mesh: Mesh, parameters: Sequence[Parameter], candidates: Sequence[_Candidate], redundant: set[_Candidate]
) -> tuple[list[float], dict[_Candidate, int]]:
    """Loads and owners: redundant matrices first, then those that few ranks hold whole, then the longest to the least
    loaded rank (longest processing time first, Graham 1969)."""
    loads = [0.0] * mesh.size
    owners: dict[_Candidate, int] = {}
    for candidate in (c for c in candidates if c in redundant):
        rows = replica_sets(mesh, parameters[candidate.parameter].state)
        first, ranks = min(rows.items(), key=lambda item: (max(loads[r] for r in item[1]), item[0]))
        owners[candidate] = first
        for rank in ranks:
            loads[rank] -= candidate.negative_cost
    total = sum(loads) - sum(c.negative_cost for c in candidates if c not in redundant)
    target = max(total / mesh.size, -min((c.negative_cost for c in candidates), default=0.0)) * (1 + 1e-9)
    rest = []
    for candidate in (c for c in candidates if c not in redundant):
        parameter = parameters[candidate.parameter]
        counts = elements(parameter, candidate.matrix, parameter.state, mesh)
        holders = np.flatnonzero(counts == candidate.matrix.rows * candidate.matrix.cols)
        if 0 < len(holders) < mesh.size:
            rank = min(map(int, holders), key=lambda r: (loads[r], r))
            if loads[rank] - candidate.negative_cost <= target:
                owners[candidate] = rank
                loads[rank] -= candidate.negative_cost
                continue
        rest.append(candidate)
    # Ties go along the first mesh dimension first: replicas, where there are any, share the traffic as well.
    heap = [(loads[rank], mesh.coordinates[rank][::-1], rank) for rank in range(mesh.size)]
    heapq.heapify(heap)
    for candidate in rest:
        load, tie, rank = heap[0]
        owners[candidate] = rank
        loads[rank] = load - candidate.negative_cost
        heapq.heapreplace(heap, (loads[rank], tie, rank))
    return loads, owners


class _Draft(NamedTuple):
    """An assignment without its wave; its owner's seconds; the elements in each of five buffers of every rank."""

    assignment: Assignment
    seconds: float
    traffic: np.ndarray


def _draft(
    mesh: Mesh, parameters: Sequence[Parameter], candidate: _Candidate, owner: int, *, redundant: bool
) -> _Draft:
    parameter, matrix = parameters[candidate.parameter], candidate.matrix
    state, param = (elements(parameter, matrix, p, mesh) for p in (parameter.state, parameter.param))
    whole = matrix.rows * matrix.cols
    copies = 1 if redundant else _copies(mesh, parameter.param)
    gathers, scatters = bool(state[owner] < whole), bool(param[owner] < whole)
    kind: Kind = "redundant" if redundant else "owner" if gathers or scatters or copies > 1 else "local"
    owned, sent, relayed = np.zeros_like(state), state, param
    if redundant:
        owned[replica_sets(mesh, parameter.state)[owner]] = whole
    else:
        owned[owner] = whole
        sent = state * beside(mesh, parameter.state, owner)
        relayed = param * beside(mesh, parameter.param, owner)
    assignment = Assignment(candidate.parameter, matrix, kind, owner, 0, gathers, scatters, copies > 1)
    traffic = np.stack([sent, owned, relayed, relayed * (copies - 1), param - relayed])
    return _Draft(assignment, -candidate.negative_cost, traffic)


def _cut_waves(
    drafts: Sequence[_Draft], loads: Sequence[float], element_size: int, wave_bytes: int
) -> list[Assignment]:
    """Fills waves in the order in which the owners' clocks run, so that all owners have about the same work in each.

    Time is cut into as many slots as the longest queue has matrices; a slot goes into one wave if it fits.
    """
    clocks, lengths = [0.0] * len(loads), [0] * len(loads)
    timed = []
    for number, draft in enumerate(drafts):
        owner = draft.assignment.owner
        timed.append((clocks[owner] + draft.seconds / 2, number))
        clocks[owner] += draft.seconds
        lengths[owner] += 1
    end, longest = max(clocks, default=0.0) * (1 + 1e-9), max(lengths, default=0)
    slots: dict[int, list[_Draft]] = {}
    for time, number in sorted(timed):
        slots.setdefault(int(time / end * longest), []).append(drafts[number])
    # Memory for the largest matrix is needed anyway, so that all owners may hold as much at the same time.
    largest = max((int(draft.traffic.max()) for draft in drafts), default=0)
    limit = max(wave_bytes // element_size, largest)
    assignments: list[Assignment] = []
    wave, used = 0, np.zeros((5, len(loads)), dtype=np.int64)
    for slot in slots.values():
        fits = (used + sum(draft.traffic for draft in slot)).max() <= limit
        for group in [slot] if fits else [[draft] for draft in slot]:
            traffic = sum(draft.traffic for draft in group)
            if used.any() and (used + traffic).max() > limit:
                wave, used = wave + 1, np.zeros_like(used)
            used = used + traffic
            assignments += [draft.assignment._replace(wave=wave) for draft in group]
    return assignments
