"""One step of parameters that share a plan: wave by wave, exchanges under way while the chains run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import dispatch
from ..coefficients import resolve_coefficients
from ..orthogonalize import Orthogonalizer, raw_dtype
from ..schedule import chain_waves
from ..svd import polar_dtype
from ..variants.weight_decay import with_cautious_decay
from .exchange import Exchange, Segment, Wave
from .inputs import inputs
from .moments import Moments
from .plan import Plan
from .results import Target, multiply, multiply_and_apply, targets
from .team import Team, Transfer
from .views import copy, cut, read, read_all, within


class Local(NamedTuple):
    """This rank's part of a parameter, its gradient and its momentum as [*leading, rows, cols].

    Without a gradient the parameter is skipped, on all ranks.
    """

    param: Tensor
    grad: Tensor | None
    momentum: Tensor


@dataclass(frozen=True, eq=False)
class Bucket:
    """Parameters of one group, team, device and dtype, and their plan as this rank sees it.

    scales: for every assignment, the rule's factor for lr.
    compute: precision of the chains.
    """

    team: Team
    params: tuple[Tensor, ...]
    plan: Plan
    waves: tuple[Wave, ...]
    scales: tuple[float, ...]
    compute: torch.dtype


class Leaving(NamedTuple):
    """Results of a wave on their way, and those segments of what arrives that are not applied yet."""

    wave: Wave
    results: Transfer
    unapplied: Sequence[Segment]


class BucketStep:
    """One step of a bucket, with its group's options.

    What the prologue writes travels in the dtype in which one process would keep it, so that an owner sees the same
    bits; its sum of squares is that of the assembled matrix, on a CPU in the order of the prologue, or of its pieces.
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
        self._bucket, self._group, self._max_bytes = bucket, group, max_bytes
        self._moments, self._close = moments, close
        self._assignments = bucket.plan.assignments
        self._parts = [parts[assignment.parameter] for assignment in self._assignments]
        self._rows = resolve_coefficients(group["ns_coefficients"], group["ns_steps"])
        self._grad_scale: Tensor | None = None
        self._found_inf: Tensor | None = None
        self._copied: tuple[Wave, Transfer] | None = None
        self.device = parts[0].param.device
        lr = group["lr"]
        rate = dispatch.rate_tensor(lr)
        self._rate = rate if rate.is_cpu else rate.to(self.device)
        self._wire = raw_dtype(bucket.compute)

    def run(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Every wave: while the chains of one run, the next one is gathered, the one before is scattered, and the
        updates of the one before that are copied to other replicas.

        Args:
            grad_scale, found_inf: as in `ops.prologue`; `found_inf` must be the same on all ranks.
        """
        self._grad_scale, self._found_inf = grad_scale, found_inf
        waves = self._bucket.waves
        coming = self._gather(waves[0])
        leaving: Leaving | None = None
        for i, wave in enumerate(waves):
            here, coming = coming, self._gather(waves[i + 1]) if i + 1 < len(waves) else coming
            scattered = self._orthogonalize(wave, here.wait())
            if leaving is not None:
                self._pass_on(leaving)
            leaving = scattered
        assert leaving is not None
        self._pass_on(leaving)
        self._apply_copied()
        if self._moments is not None:
            self._moments.share()
        self._close()

    def _buffers(self, exchange: Exchange, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """One to send from and one to receive into."""
        send, receive = (torch.empty(size, dtype=dtype, device=self.device) for size in exchange.sizes)
        return send, receive

    def _active(self, segments: Iterable[Segment]) -> list[Segment]:
        """Those of parameters that are stepped."""
        return [s for s in segments if self._parts[s.number].grad is not None]

    def _gather(self, wave: Wave) -> Transfer:
        """The prologue, straight into the buffers."""
        exchange = wave.gather
        send, receive = self._buffers(exchange, self._wire)
        by_dtype: dict[torch.dtype, list[tuple[Tensor, Tensor, Tensor]]] = {}
        for buffer, segments in ((send, exchange.send), (send, exchange.discarded), (receive, exchange.kept)):
            for segment in self._active(segments):
                _, grad, momentum = self._parts[segment.number]
                assert grad is not None
                tensors = (cut(grad, segment.piece), cut(momentum, segment.piece), read(buffer, segment))
                by_dtype.setdefault(grad.dtype, []).append(tensors)
        for tensors_of_dtype in by_dtype.values():
            grads, momenta, outs = map(list, zip(*tensors_of_dtype, strict=True))
            dispatch.run(
                "prologue",
                grads,
                momenta,
                outs,
                torch.empty(len(grads), dtype=torch.float64, device=self.device),
                momentum=self._group["momentum"],
                nesterov=self._group["nesterov"],
                ema=True,
                maximize=self._group["maximize"],
                grad_scale=self._grad_scale,
                found_inf=self._found_inf,
            )
        return self._bucket.team.start(exchange, send, receive, "gathering momentum")

    def _orthogonalize(self, wave: Wave, gathered: Tensor) -> Leaving:
        """Runs the chains of the owned matrices and sends the results off."""
        exchange = wave.scatter
        group, compute = self._group, self._bucket.compute
        results = compute
        if self._moments is not None:
            results = self._moments.dtype
        elif group["method"] == "svd":
            results = polar_dtype(self._wire)
        send, receive = self._buffers(exchange, results)
        owned = [n for n in wave.owned if self._parts[n].grad is not None]
        shapes = [(self._assignments[n].matrix.rows, self._assignments[n].matrix.cols) for n in owned]
        rows = self._rows
        applied: set[int] = set()
        waves = chain_waves(shapes, rows, method=group["method"], compute_dtype=compute, max_bytes=self._max_bytes)
        for part in waves:
            numbers = [owned[i] for i in part.order]
            places = ((send, exchange.sent_by_number), (receive, exchange.kept_by_number))
            into = None if self._moments is not None else targets(part.groups, numbers, places)
            chain = Orthogonalizer(
                part.groups,
                rows,
                method=group["method"],
                preconditioning=group["preconditioning"],
                compute_dtype=compute,
                device=self.device,
                eps=group["eps"],
                safety_factor=group["safety_factor"],
                factored=into is not None,
            )
            matrices = inputs(chain, gathered, [wave.gather.arrived_by_number[n] for n in numbers])
            if chain.factored and into is not None:
                applied |= self._last_products(*chain.factors(*matrices), *into)
                continue
            orthogonal = chain.run(*matrices)
            if self._moments is not None:
                orthogonal = group["normalizer"].run(orthogonal, self._moments.of(numbers), self._found_inf)
            for buffer, by_number in places:
                segments = [by_number.get(n, []) for n in numbers]
                copy(read_all(buffer, segments), within(orthogonal, segments))
        unapplied: Sequence[Segment] = exchange.arrived
        if applied:
            unapplied = [*exchange.receive, *(s for s in exchange.kept if s.number not in applied)]
        return Leaving(wave, self._bucket.team.start(exchange, send, receive, "scattering updates"), unapplied)

    def _last_products(
        self, left: Sequence[Tensor], right: Sequence[Tensor], sent: Sequence[Target], kept: Sequence[Target]
    ) -> set[int]:
        """Writes what is sent, and of what is kept that which other replicas wait for or another rule than
        `ops.gemm_apply` applies. Steps parameters by the rest; returns the numbers of its matrices."""
        stored = list(sent)
        stepped: list[Target] = []
        decoupled = self._group["weight_decay_rule"] == "decoupled"
        for target in kept:
            waited_for = any(self._assignments[s.number].copies for s in target.segments)
            (stepped if decoupled and not waited_for else stored).append(target)
        multiply(left, right, stored)
        segments = [s for target in stepped for s in target.segments]
        multiply_and_apply(
            left,
            right,
            stepped,
            [cut(self._parts[s.number].param, s.piece) for s in segments],
            lr=self._rate,
            weight_decay=self._group["weight_decay"],
            scales=[self._bucket.scales[s.number] for s in segments],
            found_inf=self._found_inf,
        )
        return {s.number for s in segments}

    def _pass_on(self, leaving: Leaving) -> None:
        """Takes in what was copied of the wave before, sends this one's updates on to the other replicas, and applies
        what came here."""
        wave, scattered = leaving.wave, leaving.results.wait()
        self._apply_copied()
        send, receive = self._buffers(wave.copy, scattered.dtype)
        if wave.passed_on:
            torch.cat([scattered[s.offset : s.stop] for s in wave.passed_on], out=send)
        self._copied = wave, self._bucket.team.start(wave.copy, send, receive, "copying updates")
        self._apply(leaving.unapplied, scattered)

    def _apply_copied(self) -> None:
        """Waits for what other replicas pass on, and applies it."""
        if self._copied is not None:
            wave, copied = self._copied
            self._copied = None
            self._apply(wave.copy.arrived, copied.wait())

    def _apply(self, segments: Sequence[Segment], buffer: Tensor) -> None:
        """Steps what lies here of the segments by their updates."""
        came = self._active(segments)
        if not came:
            return
        params = [cut(self._parts[s.number].param, s.piece) for s in came]
        updates = [read(buffer, s) for s in came]
        scales = [self._bucket.scales[s.number] for s in came]
        weight_decay = self._group["weight_decay"]
        if self._group["weight_decay_rule"] == "cautious":
            updates = with_cautious_decay([update[None] for update in updates], params, scales, weight_decay)
            weight_decay, scales = 0.0, [1.0] * len(scales)
        dispatch.run(
            "apply",
            params,
            updates,
            lr=self._rate,
            weight_decay=weight_decay,
            scales=scales,
            found_inf=self._found_inf,
        )
