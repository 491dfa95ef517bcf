"""One rank's part of a plan: which pieces it sends and receives in every wave, and where they lie in its buffers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from .layout import Piece, Placement, pieces
from .plan import Assignment, Plan


class Segment(NamedTuple):
    """A piece of the plan's assignment `number`, contiguous at `offset` (in elements) of a buffer."""

    number: int
    piece: Piece
    offset: int

    @property
    def stop(self) -> int:
        """Where the segment ends."""
        return self.offset + self.piece.rows * self.piece.cols


@dataclass(frozen=True)
class Exchange:
    """One all-to-all of a wave, as one rank sees it.

    send, receive: segments for, and from, the other ranks, in their order, and for each in the plan's order.
    send_splits, receive_splits: elements for, and from, each rank; 0 for this one.
    kept: segments that this rank has for itself, behind those of `receive`: they are written where they are read.
    discarded: segments for what has to be computed here and goes nowhere: all in one place after `send`.
    moves: whether anything leaves any rank; if not, no collective runs.
    """

    send: tuple[Segment, ...]
    send_splits: tuple[int, ...]
    receive: tuple[Segment, ...]
    receive_splits: tuple[int, ...]
    kept: tuple[Segment, ...]
    discarded: tuple[Segment, ...]
    moves: bool

    @cached_property
    def arrived(self) -> tuple[Segment, ...]:
        """What the receive buffer holds in the end."""
        return (*self.receive, *self.kept)

    @cached_property
    def arrived_by_number(self) -> dict[int, list[Segment]]:
        """`arrived` by assignment."""
        return _by_number(self.arrived)

    @cached_property
    def sent_by_number(self) -> dict[int, list[Segment]]:
        """`send` by assignment."""
        return _by_number(self.send)

    @cached_property
    def kept_by_number(self) -> dict[int, list[Segment]]:
        """`kept` by assignment."""
        return _by_number(self.kept)

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """Elements of a buffer that holds what is sent and what is discarded, and of one for what arrives."""
        return _end((*self.send, *self.discarded)), _end(self.arrived)


def _by_number(segments: Sequence[Segment]) -> dict[int, list[Segment]]:
    found: dict[int, list[Segment]] = {}
    for segment in segments:
        found.setdefault(segment.number, []).append(segment)
    return found


def _end(segments: Sequence[Segment]) -> int:
    return max((segment.stop for segment in segments), default=0)


@dataclass(frozen=True)
class Wave:
    """What one rank does in one wave: the assignments that it owns, and three exchanges.

    gather: pieces of the momentum's look-ahead to the owners; scatter: results back, within the owner's replica; copy:
    from there on to the other replicas.
    """

    owned: tuple[int, ...]
    gather: Exchange
    scatter: Exchange
    copy: Exchange

    @cached_property
    def passed_on(self) -> tuple[Segment, ...]:
        """For every segment that `copy` sends, what arrived of `scatter` that it is."""
        came = {(s.number, s.piece.at_row, s.piece.at_col): s for s in self.scatter.arrived}
        return tuple(came[s.number, s.piece.at_row, s.piece.at_col] for s in self.copy.send)


def schedule(plan: Plan, rank: int) -> tuple[Wave, ...]:
    """Every wave of `plan`, for `rank`: equal matrices are neighbours, so that their pieces lie evenly."""
    waves: list[list[tuple[int, Assignment]]] = [[] for _ in range(plan.waves)]
    for index, assignment in enumerate(plan.assignments):
        waves[assignment.wave].append((index, assignment))
    for assignments in waves:
        assignments.sort(key=lambda numbered: (numbered[1].matrix.rows, numbered[1].matrix.cols))
    return tuple(_wave(plan, rank, assignments) for assignments in waves)


def _wave(plan: Plan, rank: int, assignments: list[tuple[int, Assignment]]) -> Wave:
    sent, unsent, gathered, results, scattered, forwarded, copied = (_Buffer(plan) for _ in range(7))
    owned = []
    for index, a in assignments:
        owner, parameter = plan.owner_for(a, rank), plan.parameters[a.parameter]
        (sent if plan.source(a, rank) == rank else unsent).add(index, parameter.state, rank, owner)
        relay = plan.relay(a, rank)
        if relay != rank:
            copied.add(index, parameter.param, rank, relay)
        else:
            scattered.add(index, parameter.param, rank, owner)
            if a.copies:
                for replica in plan.replicas(a, rank):
                    if replica != rank:
                        forwarded.add(index, parameter.param, replica, replica)
        if owner == rank:
            owned.append(index)
            for peer in range(plan.mesh.size):
                if plan.owner_for(a, peer) == rank:
                    if plan.source(a, peer) == peer:
                        gathered.add(index, parameter.state, peer, peer)
                    if plan.relay(a, peer) == peer:
                        results.add(index, parameter.param, peer, peer)
    return Wave(
        tuple(owned),
        _exchange(rank, sent, gathered, unsent, moves=any(a.gathers for _, a in assignments)),
        _exchange(rank, results, scattered, None, moves=any(a.scatters for _, a in assignments)),
        _exchange(rank, forwarded, copied, None, moves=any(a.copies for _, a in assignments)),
    )


def _exchange(rank: int, send: _Buffer, receive: _Buffer, unsent: _Buffer | None, *, moves: bool) -> Exchange:
    sent, send_splits = send.laid_out(besides=rank)
    received, receive_splits = receive.laid_out(besides=rank)
    kept = receive.of(rank, sum(receive_splits))
    discarded = tuple(s._replace(offset=sum(send_splits)) for s in unsent.laid_out()[0]) if unsent else ()
    return Exchange(sent, send_splits, received, receive_splits, kept, discarded, moves)


class _Buffer:
    """A buffer being laid out: segments by peer, and for each peer in the order in which they were added."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._by_peer: dict[int, list[tuple[int, Piece]]] = {}

    def add(self, index: int, placements: tuple[Placement, ...], holder: int, peer: int) -> None:
        """What `holder` holds of assignment `index`, for or from `peer`."""
        a = self._plan.assignments[index]
        found = pieces(self._plan.parameters[a.parameter], a.matrix, placements, self._plan.mesh, holder)
        if found:
            self._by_peer.setdefault(peer, []).extend((index, piece) for piece in found)

    def laid_out(self, besides: int | None = None) -> tuple[tuple[Segment, ...], tuple[int, ...]]:
        """The segments of all peers, besides one, and the elements for each."""
        segments: list[Segment] = []
        splits = [0] * self._plan.mesh.size
        end = 0
        for peer in sorted(self._by_peer.keys() - {besides}):
            segments += self.of(peer, end)
            splits[peer] = segments[-1].stop - end
            end = segments[-1].stop
        return tuple(segments), tuple(splits)

    def of(self, peer: int, offset: int) -> tuple[Segment, ...]:
        """The segments of one peer, from `offset` on."""
        segments = []
        for index, piece in self._by_peer.get(peer, ()):
            segments.append(Segment(index, piece, offset))
            offset = segments[-1].stop
        return tuple(segments)
