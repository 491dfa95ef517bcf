"""What an optimizer keeps of the parameters that it shares with other processes, and how it steps them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ..checks import check_shared
from ..coefficients import resolve_coefficients
from ..masters import Masters, stepped_dtype
from ..matrices import step_factor
from ..orthogonalize import default_compute_dtype
from ..periodic import steps_shards
from ..refusals import Matrices, backend_request, check_backend
from ..scaling import resolve_rule
from ..variants import NorMuon
from .binding import Member, bind, check_tensors, describe_tensors, lies_as, new_momentum, parts
from .costs import HARDWARE
from .dtensors import is_dtensor
from .errors import DistributedError
from .exchange import schedule
from .moments import Moments
from .plan import DEFAULT_WAVE_BYTES, plan
from .roll_call import Note, roll_call
from .step import Bucket, BucketStep
from .team import Team
from .traffic import moved

Shared = dist.ProcessGroup | DeviceMesh
StateSharding = Literal["match", "rows"]

AGREED = (
    "lr",
    "weight_decay",
    "momentum",
    "nesterov",
    "ns_coefficients",
    "eps",
    "ns_steps",
    "adjust_lr_fn",
    "method",
    "safety_factor",
    "preconditioning",
    "compute_dtype",
    "momentum_dtype",
    "normalizer",
    "master_dtype",
    "maximize",
    "weight_decay_rule",
    "period",
    "block_lr_scale",
)
"""The options of a group that all ranks must agree on, besides the dtype of its parameters."""


class Held(NamedTuple):
    """Those parameters of a group that several ranks share, and of each its description and its momentum."""

    group: dict[str, Any]
    params: list[Tensor]
    members: list[Member]
    momenta: list[Tensor]


class Planned(NamedTuple):
    """A bucket, its group, and of each of its parameters the description and the momentum."""

    bucket: Bucket
    group: dict[str, Any]
    members: tuple[Member, ...]
    momenta: tuple[Tensor, ...]


class Shares:
    """The parameters of an optimizer that several ranks hold: DTensors, and plain tensors of a process group.

    Args:
        state_sharding: where the momentum of a plain tensor lies: "match", whole on every rank, or "rows", sharded
            along its dimension 0. That of a DTensor lies as the DTensor does.
    """

    def __init__(self, state_sharding: StateSharding) -> None:
        if state_sharding not in ("match", "rows"):
            raise ValueError(f"state_sharding must be 'match' or 'rows', got {state_sharding!r}")
        self._row_state = state_sharding == "rows"
        self._members: dict[Tensor, Member] = {}
        self._teams: list[Team] = []
        self._lines: dict[dist.ProcessGroup, DeviceMesh] = {}
        self._buckets: dict[Any, Bucket] = {}
        self._checked: dict[int, Any] = {}

    def without(self, params: list[Tensor]) -> list[Tensor]:
        """Those of `params` that no other rank holds."""
        return [p for p in params if p not in self._members] if self._members else params

    def adopt(self, group: dict[str, Any], names: Sequence[str], shared: Shared | None) -> None:
        """Takes over those parameters of a group that several ranks hold.

        Args:
            group: with options filled in.
            names: of its parameters.
            shared: the ranks that hold the plain tensors among them alike, gradients included.

        Raises:
            ValueError, UnsupportedPlacement: a parameter that nobody could step; none has been taken then.
        """
        members = {}
        layout = None if group["layout"] == "shards" else group["layout"]
        for p, name in zip(group["params"], names, strict=True):
            if is_dtensor(p):
                members[p] = bind(p, name, layout, self._team(p.device_mesh), row_state=False)
            elif shared is not None:
                if group["layout"] == "shards":
                    raise ValueError(
                        f"parameter {name}: layout 'shards' needs a DTensor, got a tensor that all ranks hold"
                    )
                members[p] = bind(p, name, layout, self._team(self._line(shared, p)), row_state=self._row_state)
        self._members |= members

    def holds_any(self, group: dict[str, Any]) -> bool:
        """Whether several ranks hold a parameter of the group."""
        return bool(self._members) and any(p in self._members for p in group["params"])

    def held(self, groups: Sequence[dict[str, Any]], state: dict[Tensor, Any]) -> list[Held]:
        """What was adopted, for each group that has any. A momentum that `state` lacks, at first or after a checkpoint,
        becomes zero, and so does a second moment."""
        found = []
        for group in groups:
            params = [p for p in group["params"] if p in self._members]
            members, momenta = [self._members[p] for p in params], []
            for p, member in zip(params, members, strict=True):
                own = state[p]
                if "momentum_buffer" not in own:
                    own["momentum_buffer"] = new_momentum(p, member, group["momentum_dtype"])
                momenta.append(own["momentum_buffer"])
                if isinstance(group["normalizer"], NorMuon):  # others will be refused
                    group["normalizer"].moments(own, p, group["layout"])
            if params:
                found.append(Held(group, params, members, momenta))
        return found

    def prepare(
        self,
        groups: Sequence[dict[str, Any]],
        state: dict[Tensor, Any],
        masters: Masters,
        max_bytes: Callable[[torch.device], int],
        check: Callable[[], None],
    ) -> list[BucketStep]:
        """Checks all that a step needs, on every rank, before anything changes; returns what is to be run.

        Args:
            groups: the optimizer's, with at least the parameters that were adopted.
            state, masters: the optimizer's.
            max_bytes: bound on scratch memory, by device.
            check: plans what the optimizer steps without other ranks; raises if something about that is wrong.

        Raises:
            RankFailed, RanksDisagree, CollectiveFailed: as in `roll_call`; an error of `check` becomes RankFailed.
        """
        if not self._members:
            check()
            return []
        held = self.held(groups, state)
        exchanging = [h for h in held if not steps_shards(h.group)]
        failure: Exception | None = None
        planned: list[Planned] = []
        try:
            check()
            self._check(held)
            for h in held:
                check_shared(h.group)
            planned = list(self._planned(exchanging, max_bytes))
            if backend_request() != "auto":
                for matrices in _to_be_stepped(planned, state):
                    check_backend(matrices)
        except (RuntimeError, TypeError, ValueError) as error:
            failure = error
        heard: DistributedError | None = None
        present: dict[Bucket, tuple[bool, ...]] = {}
        # Small teams first: what goes wrong there is told to the larger ones that their ranks are part of.
        in_use = [team for team in self._teams if any(member.team is team for h in exchanging for member in h.members)]
        if not in_use and failure is not None:
            raise failure
        for team in sorted(in_use, key=lambda t: t.size):
            mine = [p for p in planned if p.bucket.team is team]
            note = Note(
                tuple(parameter for p in mine for parameter in p.bucket.plan.parameters),
                "; ".join(f"{_described(p.group)}, {p.bucket.params[0].dtype}" for p in mine),
                str([p.bucket.plan.digest for p in mine]),
                tuple(param.grad is not None for p in mine for param in p.bucket.params),
                f"{type(failure).__name__}: {failure}" if failure else "",
            )
            try:
                grads = iter(roll_call(team, note))
                present |= {p.bucket: tuple(islice(grads, len(p.bucket.params))) for p in mine}
            except DistributedError as error:
                heard = heard or error
                failure = failure or error
        if heard is not None:
            raise heard from (failure if failure is not heard else heard.__cause__)
        return [
            self._step(p, state, masters, present[p.bucket], max_bytes(p.bucket.params[0].device))
            for p in planned
            if p.bucket.waves and any(present[p.bucket])
        ]

    def _check(self, held: Sequence[Held]) -> None:
        """`check_tensors` for the groups that are not as in their last step."""
        for number, (_, params, members, momenta) in enumerate(held):
            found = describe_tensors(params, members, momenta)
            if found != self._checked.get(number):
                for p, member, momentum in zip(params, members, momenta, strict=True):
                    check_tensors(p, member, momentum)
                self._checked[number] = found

    def _step(
        self, planned: Planned, state: dict[Tensor, Any], masters: Masters, present: Sequence[bool], max_bytes: int
    ) -> BucketStep:
        bucket, group, members, momenta = planned
        stepped = [p for p, here in zip(bucket.params, present, strict=True) if here]
        targets = masters.open(stepped, state, group["master_dtype"])
        moments = None
        if group["normalizer"] is not None:
            moments = Moments(bucket.team, bucket.plan, _moments(bucket, group, state))
        opened = iter(targets)
        here = [
            parts(p, next(opened) if stepping else p, member, momentum, stepping)
            for p, member, momentum, stepping in zip(bucket.params, members, momenta, present, strict=True)
        ]
        return BucketStep(bucket, group, here, moments, max_bytes, partial(masters.close, stepped, targets))

    def explain(
        self, groups: Sequence[dict[str, Any]], state: dict[Tensor, Any], max_bytes: Callable[[torch.device], int]
    ) -> dict[Tensor, tuple[str, str, str]]:
        """For every parameter that is shared: where it lies, which ranks of its team compute it, and the KiB that all
        ranks together send for it in a step. Communicates nothing."""
        found = {}
        for bucket, *_ in self._planned(self.held(groups, state), max_bytes):
            made, size = bucket.plan, bucket.plan.element_size
            for i, p in enumerate(bucket.params):
                assignments = [a for a in made.assignments if a.parameter == i]
                kinds = {a.kind for a in assignments}
                owners = sorted({rank for a in assignments for rank in made.owners(a)})
                sent = sum(int(moved(made, a)[:, 0].sum()) for a in assignments) * size
                lies = ", ".join(lies_as(p)) or "replicated"
                found[p] = (
                    f"{lies} on {'x'.join(map(str, made.mesh.shape))}",
                    f"{'/'.join(sorted(kinds))} {_few(owners)}",
                    f"{sent / 1024:.4g}",
                )
        return found

    def _team(self, mesh: DeviceMesh) -> Team:
        for team in self._teams:
            if mesh == team.device_mesh:
                return team
        self._teams.append(Team.of(mesh))
        return self._teams[-1]

    def _line(self, shared: Shared, param: Tensor) -> DeviceMesh:
        """The ranks that hold a plain tensor alike, as a mesh."""
        if isinstance(shared, DeviceMesh) and shared.ndim == 1:
            return shared
        if not isinstance(shared, dist.ProcessGroup):
            raise ValueError(f"process_group must be a ProcessGroup or a 1-D DeviceMesh, got {shared!r}")
        if shared not in self._lines:
            self._lines[shared] = DeviceMesh.from_group(shared, param.device.type)
        return self._lines[shared]

    def _planned(self, held: Sequence[Held], max_bytes: Callable[[torch.device], int]) -> Iterator[Planned]:
        """Parameters of one group, team, device and dtype together, in the optimizer's order."""
        for group, *lists in held:
            together: dict[tuple[Any, ...], list[tuple[Tensor, Member, Tensor]]] = {}
            for p, member, momentum in zip(*lists, strict=True):
                key = (member.team, p.device, p.dtype, momentum.dtype)
                together.setdefault(key, []).append((p, member, momentum))
            for of_bucket in together.values():
                params, members, momenta = zip(*of_bucket, strict=True)
                bucket = self._bucket(group, params, members, max_bytes(params[0].device))
                yield Planned(bucket, group, members, momenta)

    def _bucket(
        self, group: dict[str, Any], params: tuple[Tensor, ...], members: tuple[Member, ...], max_bytes: int
    ) -> Bucket:
        steps = len(resolve_coefficients(group["ns_coefficients"], group["ns_steps"]))
        device = params[0].device
        compute = group["compute_dtype"] or default_compute_dtype(device)
        key = (*map(id, params), steps, compute, group["adjust_lr_fn"], max_bytes)
        if key not in self._buckets:
            made = plan(
                members[0].team.mesh,
                [member.parameter for member in members],
                steps=steps,
                element_size=compute.itemsize,
                hardware=HARDWARE.get(device.type, HARDWARE["cuda"]),
                # Two waves are under way at a time, each with a buffer that is sent and one that is received.
                wave_bytes=min(DEFAULT_WAVE_BYTES, -(-max_bytes // 4)),
            )
            rule = resolve_rule(group["adjust_lr_fn"])
            scales = [
                rule((a.matrix.rows, a.matrix.cols)) * step_factor(params[a.parameter].shape, group["layout"])
                for a in made.assignments
            ]
            team = members[0].team
            self._buckets[key] = Bucket(team, params, made, schedule(made, team.rank), tuple(scales), compute)
        return self._buckets[key]


def _to_be_stepped(planned: Sequence[Planned], state: dict[Tensor, Any]) -> Iterator[Matrices]:
    """What ops will be given of each bucket that has a gradient here; another rank may have those that are missing."""
    for bucket, group, _, momenta in planned:
        if all(p.grad is None for p in bucket.params):
            continue
        first, normalizer = bucket.params[0], group["normalizer"]
        for grad in dict.fromkeys((p if p.grad is None else p.grad).dtype for p in bucket.params):
            yield Matrices(
                group,
                first.device,
                bucket.compute,
                stepped_dtype(first, group["master_dtype"]),
                grad,
                momenta[0].dtype,
                None if normalizer is None else state[first][normalizer.key].dtype,
                shared=True,
            )


def _moments(bucket: Bucket, group: dict[str, Any], state: dict[Tensor, Any]) -> list[Tensor]:
    """The second moment of every assignment."""
    assignments = bucket.plan.assignments
    # In the order in which a layout cuts: the planner may have put them in another.
    in_order = sorted(range(len(assignments)), key=lambda n: (assignments[n].parameter, assignments[n].matrix))
    views: dict[int, Tensor] = {}
    for i, numbers in groupby(in_order, key=lambda n: assignments[n].parameter):
        p = bucket.params[i]
        views |= zip(numbers, group["normalizer"].moments(state[p], p, group["layout"]), strict=True)
    return [views[n] for n in range(len(views))]


def _few(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks)) if len(ranks) <= 8 else f"{len(ranks)} ranks"


def _described(group: dict[str, Any]) -> str:
    """What ranks must agree on, as text; a tensor on a device is not read."""
    values = ((name, group[name]) for name in AGREED)
    return ", ".join(
        f"{name}={v.item() if isinstance(v, Tensor) and v.is_cpu else getattr(v, '__name__', v)}"
        for name, v in values
        if not isinstance(v, Tensor) or v.is_cpu
    )
