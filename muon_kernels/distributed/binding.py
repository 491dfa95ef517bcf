"""Tensors as the planner's parameters: what DTensor placements and layouts mean in integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..described import describe
from ..matrices import Layout, split
from ..negated import check_not_negated
from .dtensors import is_dtensor, local, spec_and_local
from .errors import UnsupportedPlacement
from .layout import Parameter, Placement, Run, held, local_shape
from .step import Local
from .team import Team


@dataclass(frozen=True, eq=False)
class Member:
    """A parameter that several ranks share: its team and description, and how to see it as [*leading, rows, cols].

    rows: the part of dimension 0 whose momentum lies here, if that is sharded and the parameter is not.
    """

    team: Team
    parameter: Parameter
    layout: Layout
    rows: Run | None

    def view(self, local: Tensor) -> Tensor:
        """A local tensor in the parameter's form; shares its memory."""
        if self.layout == "flatten":
            return local.view(local.shape[0], math.prod(local.shape[1:]))
        if self.layout == "conv_batched":
            return local.permute(*range(2, local.ndim), 0, 1)
        return local

    def grad_view(self, local: Tensor) -> Tensor:
        """The part of a local gradient whose momentum lies here, in the parameter's form; may be a copy."""
        if self.rows is not None:
            local = local[slice(*self.rows)]
        return self.view(local.contiguous() if self.layout == "flatten" else local)


def bind(tensor: Tensor, name: str, layout: Layout, team: Team, *, row_state: bool) -> Member:
    """Describes a parameter: a DTensor, or a plain tensor that all ranks of `team` hold alike.

    Args:
        row_state: the momentum of a plain tensor is sharded along its dimension 0.

    Raises:
        ValueError: the tensor has no such layout.
        UnsupportedPlacement: nobody could step it; the message names the parameter and its placements.
    """
    split(torch.empty(tensor.shape, device="meta"), layout)
    if is_dtensor(tensor):
        placements = [_placement(p, name, tensor) for p in tensor.placements]  # type: ignore[attr-defined]
        stored = placements
    else:
        placements = [Placement()]
        stored = [Placement(0)] if row_state else placements
    shape, order = _form(tensor.shape, layout)
    param, state = (_moved(p, order, name, tensor) for p in (placements, stored))
    parameter = Parameter(name, shape, state, param, _blocks(shape, tensor.shape, layout, name))
    rows = None
    if row_state and not is_dtensor(tensor):
        runs = held(tensor.shape[0], 0, tuple(stored), team.mesh.shape, team.mesh.coordinates[team.rank])
        rows = runs[0] if runs else (0, 0)
    member = Member(team, parameter, layout, rows)
    part = local(tensor.detach())
    if layout == "flatten" and not part.is_contiguous():
        raise UnsupportedPlacement(
            f"parameter {name}: layout 'flatten' needs a contiguous local tensor, got strides {part.stride()}"
        )
    expected, found = local_shape(parameter, param, team.mesh, team.rank), tuple(member.view(part).shape)
    if found != expected:
        raise UnsupportedPlacement(
            f"parameter {name}: with {_describe(tensor)} rank {team.rank} must hold {list(expected)}, "
            f"but its local tensor is {list(found)}"
        )
    return member


def new_momentum(tensor: Tensor, member: Member, dtype: torch.dtype | None) -> Tensor:
    """Zeros that lie where the parameter does, or in rows; in the parameter's dtype unless `dtype` is given."""
    zeros = torch.zeros_like(local(tensor.detach()), dtype=dtype, memory_format=torch.preserve_format)
    if not is_dtensor(tensor) and member.rows is None:
        return zeros
    from torch.distributed.tensor import DTensor, Shard

    return DTensor.from_local(
        zeros if member.rows is None else zeros[slice(*member.rows)].clone(),
        member.team.device_mesh,
        [Shard(0)] if member.rows is not None else tensor.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def describe_tensors(params: list[Tensor], members: list[Member], momenta: list[Tensor]) -> Any:
    """All that `check_tensors` looks at, and what sorts parameters into buckets, as something to compare. It holds no
    tensor."""
    grads = [p.grad for p in params]
    tensors = [*params, *momenta, *(grad for grad in grads if grad is not None)]
    flattened = [pair for *pair, b in zip(params, momenta, members, strict=True) if b.layout == "flatten"]
    contiguous = [local(x).is_contiguous() for pair in flattened for x in pair]
    missing = [grad is None for grad in grads]
    specs, here = zip(*map(spec_and_local, tensors), strict=True) if tensors else ((), ())
    return members, missing, contiguous, specs, describe(list(here)).like


def check_tensors(tensor: Tensor, member: Member, momentum: Tensor) -> None:
    """Raises ValueError if the parameter is not as it was bound, if the momentum, or a gradient, does not lie where it
    does, or if torch negates one of them as it reads it."""
    name, here = member.parameter.name, local(tensor)
    check_not_negated(f"parameter {name}: its local tensor", here)
    bound = local_shape(member.parameter, member.parameter.param, member.team.mesh, member.team.rank)
    if member.layout == "flatten" and not (here.is_contiguous() and local(momentum).is_contiguous()):
        raise ValueError(f"parameter {name}: layout 'flatten' needs a contiguous parameter and momentum")
    found = tuple(member.view(here).shape)
    if found != bound:
        raise ValueError(f"parameter {name}: its local tensor must be {list(bound)} as it was, got {list(found)}")
    expected = ["Shard(dim=0)"] if member.rows is not None else lies_as(tensor)
    if momentum.shape != tensor.shape or lies_as(momentum) != expected or not _on(momentum, member.team):
        raise ValueError(
            f"parameter {name}: its momentum must be {list(tensor.shape)} {expected} over the ranks of its parameter, "
            f"got {_where(momentum)}; torch.distributed.checkpoint loads any other"
        )
    momentum_here = local(momentum)
    stored = here if member.rows is None else here[slice(*member.rows)]
    like = momentum_here.shape == stored.shape and momentum_here.device == stored.device
    if not like or not momentum_here.is_floating_point():
        raise ValueError(
            f"parameter {name}: its momentum's local tensor must be floating {list(stored.shape)} on {stored.device}, "
            f"got {momentum_here.dtype} {list(momentum_here.shape)} on {momentum_here.device}"
        )
    check_not_negated(f"parameter {name}: its momentum", momentum_here)
    grad = tensor.grad
    if grad is None:
        return
    if grad.layout != torch.strided or not grad.is_floating_point():
        raise ValueError(f"parameter {name}: gradients must be dense and floating, got {grad.layout}, {grad.dtype}")
    alike = grad.shape == tensor.shape and lies_as(grad) == lies_as(tensor) and _on(grad, member.team)
    if not alike or grad.device != tensor.device:
        raise ValueError(f"parameter {name}: its gradient must be {_where(tensor)} as it is, got {_where(grad)}")
    if local(grad).shape != here.shape:
        raise ValueError(
            f"parameter {name}: its gradient's local tensor must be {list(here.shape)}, got {list(local(grad).shape)}"
        )
    check_not_negated(f"parameter {name}: its gradient", local(grad))


def parts(tensor: Tensor, target: Tensor, member: Member, momentum: Tensor, present: bool) -> Local:
    """What lies here of what is stepped (`target`: the parameter, or its copy), its gradient and its momentum; if only
    other ranks have the gradient, it is zero here."""
    grad = None
    if present:
        grad = tensor.grad
        grad = member.grad_view(local(torch.zeros_like(tensor) if grad is None else grad))
    return Local(member.view(local(target)), grad, member.view(local(momentum)))


def lies_as(tensor: Tensor) -> list[str]:
    """The placements of a DTensor as text; none for a plain tensor."""
    return [repr(p) for p in tensor.placements] if is_dtensor(tensor) else []  # type: ignore[attr-defined]


def _on(tensor: Tensor, team: Team) -> bool:
    """Whether a DTensor lies on the team's mesh; names of its dimensions do not matter."""
    if not is_dtensor(tensor) or tensor.device_mesh is team.device_mesh:  # type: ignore[attr-defined]
        return True
    return torch.equal(tensor.device_mesh.mesh, team.device_mesh.mesh)  # type: ignore[attr-defined]


def _where(tensor: Tensor) -> str:
    over = f" over ranks {tensor.device_mesh.mesh.tolist()}" if is_dtensor(tensor) else ""  # type: ignore[attr-defined]
    return f"{list(tensor.shape)} {lies_as(tensor)}{over} on {tensor.device}"


def _placement(placement: Any, name: str, tensor: Tensor) -> Placement:
    if placement.is_replicate():
        return Placement()
    if type(placement).__name__ not in ("Shard", "_StridedShard"):
        raise UnsupportedPlacement(
            f"parameter {name}: placements must be Shard or Replicate (or FSDP2's _StridedShard), "
            f"got {_describe(tensor)}"
        )
    return Placement(placement.dim % tensor.ndim, getattr(placement, "split_factor", 1))


def _form(shape: Sequence[int], layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The parameter's shape as [*leading, rows, cols], and the tensor's dimension that each of them starts with."""
    if layout == "flatten":
        return (shape[0], math.prod(shape[1:])), (0, 1)
    order = tuple(range(len(shape)))
    if layout == "conv_batched":
        order = (*order[2:], 0, 1)
    return tuple(shape[d] for d in order), order


def _moved(placements: Sequence[Placement], order: tuple[int, ...], name: str, tensor: Tensor) -> tuple[Placement, ...]:
    """Placements by dimension of the parameter's form."""
    if len(order) < tensor.ndim and any(p.dim for p in placements):
        raise UnsupportedPlacement(
            f"parameter {name}: layout 'flatten' needs every shard on dimension 0, got {_describe(tensor)}"
        )
    return tuple(p if p.dim is None else p._replace(dim=order.index(p.dim)) for p in placements)


def _blocks(
    form: tuple[int, ...], shape: Sequence[int], layout: Layout, name: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Heights and widths of the blocks that the layout cuts the last two dimensions into."""
    rows, cols = form[-2:]
    if layout in (None, "flatten", "batch", "conv_batched"):
        return (rows,), (cols,)
    views = split(torch.empty(tuple(shape), device="meta"), layout)
    found = [(*divmod(int(v.storage_offset()), max(cols, 1)), *v.shape) for v in views if v.numel()]
    heights, widths = sorted({(row, n) for row, _, n, _ in found}), sorted({(col, n) for _, col, _, n in found})
    strides = [pair for v in views for pair in zip(v.stride(), (cols, 1), v.shape, strict=True)]
    in_place = all(stride == expected or extent <= 1 for stride, expected, extent in strides)
    whole = sum(n for _, n in heights) * sum(n for _, n in widths) == sum(v.numel() for v in views)
    if len(form) != 2 or not in_place or not whole or len(found) != len(heights) * len(widths):
        raise UnsupportedPlacement(
            f"parameter {name}: a layout of a parameter on several ranks must cut rows and columns into a grid, "
            f"got {getattr(layout, '__name__', layout)!r} for shape {list(shape)}"
        )
    return tuple(n for _, n in heights), tuple(n for _, n in widths)


def _describe(tensor: Tensor) -> str:
    if not is_dtensor(tensor):
        return f"shape {list(tensor.shape)}, replicated"
    return f"shape {list(tensor.shape)}, placements {tuple(tensor.placements)}"  # type: ignore[attr-defined]
