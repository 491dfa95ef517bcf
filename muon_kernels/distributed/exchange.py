"""One rank's part of a plan: which pieces it sends and receives in every wave, and where they lie in its buffers."""

from __future__ import annotations

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

    send, receive: segments in the order of the peers, and for each peer in the plan's order.
    send_splits, receive_splits: elements for, and from, each peer.
    discarded: segments for what has to be computed here and goes nowhere: all in one place after `send`.
    moves: whether anything leaves any rank; if not, what is sent is what is received, and no collective runs.
    """

    send: tuple[Segment, ...]
    send_splits: tuple[int, ...]
    receive: tuple[Segment, ...]
    receive_splits: tuple[int, ...]
    discarded: tuple[Segment, ...]
    moves: bool

    @cached_property
    def received(self) -> dict[int, list[Segment]]:
        """`receive` by assignment."""
        return _by_number(self.receive)

    @cached_property
    def sent(self) -> dict[int, list[Segment]]:
        """`send` by assignment."""
        return _by_number(self.send)

    @cached_property
    def computed(self) -> int:
        """Elements of a buffer that holds what is sent and what is discarded."""
        return max((segment.stop for segment in (*self.send, *self.discarded)), default=0)

    def sent_away(self, rank: int) -> int:
        """Elements that leave `rank`, which must be the one this exchange is of."""
        return sum(self.send_splits) - self.send_splits[rank]


def _by_number(segments: tuple[Segment, ...]) -> dict[int, list[Segment]]:
    found: dict[int, list[Segment]] = {}
    for segment in segments:
        found.setdefault(segment.number, []).append(segment)
    return found


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
        """For every segment that `copy` sends, the received one of `scatter` that it is."""
        came = {(s.number, s.piece.at_row, s.piece.at_col): s for s in self.scatter.receive}
        return tuple(came[s.number, s.piece.at_row, s.piece.at_col] for s in self.copy.send)


def schedule(plan: Plan, rank: int) -> tuple[Wave, ...]:
    """Every wave of `plan`, for `rank`."""
    waves: list[list[tuple[int, Assignment]]] = [[] for _ in range(plan.waves)]
    for index, assignment in enumerate(plan.assignments):
        waves[assignment.wave].append((index, assignment))
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
        _exchange(sent, gathered, unsent, moves=any(a.gathers for _, a in assignments)),
        _exchange(results, scattered, None, moves=any(a.scatters for _, a in assignments)),
        _exchange(forwarded, copied, None, moves=any(a.copies for _, a in assignments)),
    )


def _exchange(send: _Buffer, receive: _Buffer, unsent: _Buffer | None, *, moves: bool) -> Exchange:
    sent, send_splits = send.laid_out(0)
    received, receive_splits = receive.laid_out(0)
    end = sum(send_splits)
    discarded = tuple(segment._replace(offset=end) for segment in unsent.laid_out(0)[0]) if unsent else ()
    return Exchange(sent, send_splits, received, receive_splits, discarded, moves)


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

    def laid_out(self, offset: int) -> tuple[tuple[Segment, ...], tuple[int, ...]]:
        """The segments from `offset` on, and the elements for each peer."""
        segments, splits = [], [0] * self._plan.mesh.size
        for peer, found in sorted(self._by_peer.items()):
            for index, piece in found:
                segments.append(Segment(index, piece, offset))
                offset += piece.rows * piece.cols
                splits[peer] += piece.rows * piece.cols
        return tuple(segments), tuple(splits)
