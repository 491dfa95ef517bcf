"""One step of parameters that share a plan: wave by wave, exchanges under way while the chains run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..coefficients import resolve_coefficients
from ..ops import apply, prologue
from ..orthogonalize import Orthogonalizer
from ..schedule import chain_waves
from ..variants.weight_decay import with_cautious_decay
from .exchange import Segment, Wave
from .layout import Piece
from .moments import Moments
from .plan import Plan
from .team import Team, Transfer


@dataclass(frozen=True)
class Local:
    """This rank's part of a parameter, its gradient and its momentum as [*leading, rows, cols].

    Without a gradient the parameter is skipped, on all ranks.
    """

    param: Tensor
    grad: Tensor | None
    momentum: Tensor


@dataclass(frozen=True)
class Bucket:
    """Parameters of one group, team and dtype, and their plan as this rank sees it.

    scales: for every assignment, the rule's factor for lr.
    compute: precision of the chains.
    """

    team: Team
    params: tuple[Tensor, ...]
    plan: Plan
    waves: tuple[Wave, ...]
    scales: tuple[float, ...]
    compute: torch.dtype


class BucketStep:
    """One step of a bucket, with its group's options.

    What the prologue writes travels in the dtype in which one process would keep it, so that an owner sees the same
    bits; `normalize` sums the squares of the assembled matrix, on a CPU in the order of the prologue.
    """

    def __init__(
        self,
        bucket: Bucket,
        group: dict[str, Any],
        parts: Sequence[Local],
        moments: Moments | None,
        max_bytes: int,
        close: Callable[[], None],
    ) -> None:
        self._bucket, self._group, self._parts, self._max_bytes = bucket, group, parts, max_bytes
        self._moments, self._close = moments, close
        self._assignments = bucket.plan.assignments
        self._grad_scale: Tensor | None = None
        self._found_inf: Tensor | None = None
        self.device = parts[0].param.device
        # float16 has too little range for what is not normalised yet.
        self._wire = torch.bfloat16 if bucket.compute == torch.float16 else bucket.compute

    def run(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Every wave: while the chains of one run, the next one is gathered and the one before is scattered.

        Args:
            grad_scale, found_inf: as in `ops.prologue`; `found_inf` must be the same on all ranks.
        """
        self._grad_scale, self._found_inf = grad_scale, found_inf
        waves = self._bucket.waves
        coming = self._gather(waves[0])
        leaving: Transfer | None = None
        for i, wave in enumerate(waves):
            here, coming = coming, self._gather(waves[i + 1]) if i + 1 < len(waves) else coming
            scattered = self._orthogonalize(wave, here.wait())
            if leaving is not None:
                self._finish(waves[i - 1], leaving)
            leaving = scattered
        assert leaving is not None
        self._finish(waves[-1], leaving)
        if self._moments is not None:
            self._moments.share()
        self._close()

    def _active(self, segment: Segment) -> bool:
        return self._part(segment).grad is not None

    def _part(self, segment: Segment) -> Local:
        return self._parts[self._assignments[segment.number].parameter]

    def _gather(self, wave: Wave) -> Transfer:
        """The prologue, straight into the send buffer."""
        exchange = wave.gather
        segments = (*exchange.send, *exchange.discarded)
        send = torch.empty(max((s.stop for s in segments), default=0), dtype=self._wire, device=self.device)
        by_dtype: dict[torch.dtype, list[tuple[Tensor, Tensor, Tensor]]] = {}
        for segment in segments:
            part = self._part(segment)
            if part.grad is not None:
                tensors = (_cut(part.grad, segment.piece), _cut(part.momentum, segment.piece), _read(send, segment))
                by_dtype.setdefault(part.grad.dtype, []).append(tensors)
        for tensors_of_dtype in by_dtype.values():
            grads, momenta, outs = zip(*tensors_of_dtype, strict=True)
            prologue(
                grads,
                momenta,
                outs,
                torch.empty(len(grads), dtype=torch.float64, device=self.device),
                momentum=self._group["momentum"],
                nesterov=self._group["nesterov"],
                maximize=self._group["maximize"],
                grad_scale=self._grad_scale,
                found_inf=self._found_inf,
            )
        return self._bucket.team.start(exchange, send, "gathering momentum")

    def _orthogonalize(self, wave: Wave, gathered: Tensor) -> Transfer:
        """Assembles the owned matrices, runs their chains, and sends the results off."""
        exchange = wave.scatter
        group, compute = self._group, self._bucket.compute
        results = compute
        if self._moments is not None:
            results = self._moments.dtype
        elif group["method"] == "svd":
            results = torch.float64 if self._wire == torch.float64 else torch.float32
        send = torch.empty(sum(exchange.send_splits), dtype=results, device=self.device)
        owned = [n for n in wave.owned if self._active(wave.gather.received[n][0])]
        shapes = [(self._assignments[n].matrix.rows, self._assignments[n].matrix.cols) for n in owned]
        rows = resolve_coefficients(group["ns_coefficients"], group["ns_steps"])
        waves = chain_waves(shapes, rows, method=group["method"], compute_dtype=compute, max_bytes=self._max_bytes)
        for part in waves:
            numbers = [owned[i] for i in part.order]
            chain = Orthogonalizer(
                part.groups,
                rows,
                method=group["method"],
                preconditioning=group["preconditioning"],
                compute_dtype=compute,
                device=self.device,
            )
            matrices = [matrix for batch in chain.inputs for matrix in batch.unbind(0)]
            for number, matrix in zip(numbers, matrices, strict=True):
                for segment in wave.gather.received[number]:
                    _within(matrix, segment.piece).copy_(_read(gathered, segment))
            orthogonal = chain.run(chain.inputs, None, eps=group["eps"], safety_factor=group["safety_factor"])
            if self._moments is not None:
                orthogonal = group["normalizer"].run(orthogonal, self._moments.of(numbers), self._found_inf)
            done = [matrix for batch in orthogonal for matrix in batch.unbind(0)]
            for number, matrix in zip(numbers, done, strict=True):
                for segment in exchange.sent.get(number, []):
                    _read(send, segment).copy_(_within(matrix, segment.piece))
        return self._bucket.team.start(exchange, send, "scattering updates")

    def _finish(self, wave: Wave, leaving: Transfer) -> None:
        """Passes updates on to the other replicas, and applies what came."""
        scattered = leaving.wait()
        send = torch.empty(sum(wave.copy.send_splits), dtype=scattered.dtype, device=self.device)
        kept = {(s.number, s.piece.at_row, s.piece.at_col): s for s in wave.scatter.receive}
        for segment in wave.copy.send:
            source = kept[segment.number, segment.piece.at_row, segment.piece.at_col]
            send[segment.offset : segment.stop] = scattered[source.offset : source.stop]
        copied = self._bucket.team.start(wave.copy, send, "copying updates").wait()
        came = [(s, scattered) for s in wave.scatter.receive] + [(s, copied) for s in wave.copy.receive]
        came = [(s, buffer) for s, buffer in came if self._active(s)]
        params = [_cut(self._part(s).param, s.piece) for s, _ in came]
        updates = [_read(buffer, s) for s, buffer in came]
        scales = [self._bucket.scales[s.number] for s, _ in came]
        lr, weight_decay = self._group["lr"], self._group["weight_decay"]
        if came and self._group["weight_decay_rule"] == "cautious":
            updates = with_cautious_decay([update[None] for update in updates], params, scales, weight_decay)
            weight_decay, scales = 0.0, [1.0] * len(scales)
        apply(
            params,
            updates,
            lr=lr.to(self.device) if isinstance(lr, Tensor) and lr.device.type != "cpu" else lr,
            weight_decay=weight_decay,
            scales=scales,
            found_inf=self._found_inf,
        )


def _cut(tensor: Tensor, piece: Piece) -> Tensor:
    """A piece where it lies in a local tensor."""
    if tensor.shape == (piece.rows, piece.cols):  # all of it: three views less
        return tensor
    return tensor[piece.lead][piece.row : piece.row + piece.rows, piece.col : piece.col + piece.cols]


def _within(matrix: Tensor, piece: Piece) -> Tensor:
    """A piece where it lies in the whole matrix."""
    if matrix.shape == (piece.rows, piece.cols):
        return matrix
    return matrix[piece.at_row : piece.at_row + piece.rows, piece.at_col : piece.at_col + piece.cols]


def _read(buffer: Tensor, segment: Segment) -> Tensor:
    """A segment of a buffer as [rows, cols]."""
    return buffer[segment.offset : segment.stop].view(segment.piece.rows, segment.piece.cols)
