"""How parameters lie on several ranks: a model's matrices as DTensors, or whole on each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from muon_kernels.distributed.models import is_row_wise


def line(world: int) -> tuple[int, ...]:
    """A mesh of one dimension."""
    return (world,)


def two_replicas(world: int) -> tuple[int, ...]:
    """Two along the first dimension, which shard along the second."""
    return 2, world // 2


def pairs(world: int) -> tuple[int, ...]:
    """Tensor parallelism in pairs along the second dimension."""
    return world // 2, 2


@dataclass(frozen=True)
class Layout:
    """A way to lie.

    name: the row's.
    sides: of the mesh, from the number of ranks.
    placements: of every parameter; None: plain tensors, which all ranks hold alike.
    row_wise: of the parameters that tensor parallelism cuts along columns; None: the same.
    inner: parameters lie on the second mesh dimension alone, and nobody knows of the first.
    state_sharding: of plain tensors.
    simulated: its name in `muon_kernels.distributed.simulate`, if that knows it.
    """

    name: str
    sides: Callable[[int], tuple[int, ...]]
    placements: tuple[Placement, ...] | None
    row_wise: tuple[Placement, ...] | None = None
    inner: bool = False
    state_sharding: str = "match"
    simulated: str | None = None

    def fits(self, world: int) -> bool:
        """Whether so many ranks make such a mesh, with no side of one rank."""
        sides = self.sides(world)
        return min(sides) > 1 and math.prod(sides) == world

    def mesh(self, device_type: str) -> DeviceMesh:
        """Of all ranks; collective."""
        mesh = _mesh(device_type, self.sides(dist.get_world_size()))
        return mesh["inner"] if self.inner else mesh

    def optimizer_options(self) -> dict[str, Any]:
        """What `Muon` must be told."""
        if self.placements is not None:
            return {}
        return {"process_group": dist.group.WORLD, "state_sharding": self.state_sharding}

    def put(self, name: str, whole: Tensor, mesh: DeviceMesh) -> Tensor:
        """This rank's version of a parameter that every rank has whole. A copy: a view would keep the whole alive."""
        if self.placements is None:
            return whole.clone()
        placements = self.row_wise if self.row_wise and is_row_wise(name) else self.placements
        part = distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local().clone()
        return DTensor.from_local(part, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())


@lru_cache
def _mesh(device_type: str, sides: tuple[int, ...]) -> DeviceMesh:
    """One for each shape: every new one would set up communicators of its own."""
    return init_device_mesh(device_type, sides, mesh_dim_names=("outer", "inner")[-len(sides) :])


FSDP = Layout("FSDP2", line, (Shard(0),), simulated="fsdp")

LAYOUTS = [
    FSDP,
    Layout("HSDP", two_replicas, (Replicate(), Shard(0)), simulated="hsdp"),
    Layout("DDP, state in rows", line, None, state_sharding="rows"),
    Layout("DDP", line, None, simulated="ddp"),
    Layout("HSDP, each replica by itself", two_replicas, (Shard(0),), inner=True),
    Layout("FSDP2 x TP", pairs, (_StridedShard(0, split_factor=2), Shard(0)), (Shard(0), Shard(1)), simulated="tp"),
]
"""In order of importance."""
