"""What the ranks of a pool run: the same parameters in one process and on all ranks, compared bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from muon_kernels import Muon
from muon_kernels.distributed.dtensors import local
from muon_kernels.variants import NorMuon

SHAPES = [(1, 9), (7, 5), (5, 33), (3, 24), (16, 16), (24, 40), (40, 24), (33, 7), (16, 16)]
"""Rows and columns that 2 and 4 ranks cannot share evenly, fewer rows than ranks, equal shapes."""

EXPERTS = [(4, 8, 12), (6, 10, 7), (3, 5, 5), (1, 6, 6)]

OPTIONS: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.2}


@lru_cache
def mesh_of(*sides: int, names: tuple[str, ...] | None = None) -> DeviceMesh:
    """All ranks as a grid. One mesh for all jobs: each has groups of its own, whose threads a process keeps, and which
    wake up many times a second as long as it lives."""
    return init_device_mesh("cpu", sides, mesh_dim_names=names)


@dataclass(frozen=True)
class Lies:
    """How parameters lie: the mesh's sides for 2 and for 4 ranks, and placements; no placements: plain tensors."""

    sides: dict[int, tuple[int, ...]]
    placements: tuple[Placement, ...] | None = None
    state_sharding: str = "match"

    def mesh(self):
        return mesh_of(*self.sides[dist.get_world_size()])

    def options(self) -> dict[str, Any]:
        if self.placements is not None:
            return {}
        return {"process_group": dist.group.WORLD, "state_sharding": self.state_sharding}

    def put(self, full: Tensor, mesh) -> Tensor:
        """This rank's version of a tensor that all ranks hold whole."""
        if self.placements is None:
            return full.clone()
        return distribute_tensor(full.clone(), mesh, self.placements, src_data_rank=None)


LINE, GRID = {2: (2,), 4: (4,)}, {2: (2, 1), 4: (2, 2)}
LIES = {
    "FSDP": Lies(LINE, (Shard(0),)),
    "FSDP, columns": Lies(LINE, (Shard(1),)),
    "replicated": Lies(LINE, (Replicate(),)),
    "HSDP": Lies(GRID, (Replicate(), Shard(0))),
    "HSDP, columns": Lies(GRID, (Replicate(), Shard(1))),
    "FSDP x TP, column-wise": Lies(GRID, (_StridedShard(0, split_factor=2), Shard(0))),
    "FSDP x TP, row-wise": Lies(GRID, (Shard(0), Shard(1))),
    "TP, data parallel": Lies(GRID, (Replicate(), Shard(1))),
    "both on rows": Lies(GRID, (Shard(0), Shard(0))),
    "DDP": Lies(LINE),
    "DDP, state in rows": Lies(LINE, None, "rows"),
}
EXPERT_LIES = {
    "EP": Lies(LINE, (Shard(0),)),
    "EP x FSDP on rows": Lies(GRID, (Shard(0), Shard(1))),
    "FSDP on columns": Lies(LINE, (Shard(2),)),
    "EP, replicated": Lies(GRID, (Replicate(), Shard(0))),
}


def full_tensors(shapes, seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


class Pair:
    """The same parameters twice: whole, in this process alone, and as `lies` says, on all ranks."""

    def __init__(self, lies: Lies, shapes, dtype=torch.float32, **options: Any) -> None:
        self.lies, self.shapes, self.dtype = lies, shapes, dtype
        self.mesh = lies.mesh()
        full = full_tensors(shapes, 0, dtype)
        self.alone = [nn.Parameter(t.clone()) for t in full]
        self.shared = [nn.Parameter(lies.put(t, self.mesh)) for t in full]
        self.one = Muon(self.alone or [{"params": []}], **OPTIONS | options)
        self.many = Muon(self.shared or [{"params": []}], **OPTIONS | options, **lies.options())

    def set_grads(self, step: int, without=()) -> None:
        for i, grad in enumerate(full_tensors(self.shapes, 100 + step, self.dtype)):
            self.alone[i].grad = None if i in without else grad.clone()
            self.shared[i].grad = None if i in without else self.lies.put(grad, self.mesh)

    def step(self, step: int, without=()) -> None:
        self.set_grads(step, without)
        self.one.step()
        self.many.step()

    def compare(self) -> None:
        """Parameters, momenta and copies have the same bits, here and on every other rank."""
        for i, (p, q) in enumerate(zip(self.alone, self.shared, strict=True)):
            expected = local(self.lies.put(p.detach(), self.mesh))
            assert torch.equal(local(q.detach()), expected), (i, tuple(p.shape), "parameter")
            state = self.many.state[q]
            assert state.keys() - {"momentum_buffer", "master", NorMuon.key} == set()
            for key, buffer in state.items():
                blank = p.detach() if key == "master" else torch.zeros(buffer.shape)
                whole = self.one.state[p].get(key, blank.to(buffer.dtype))
                if isinstance(buffer, DTensor):
                    whole = distribute_tensor(whole.clone(), buffer.device_mesh, buffer.placements, src_data_rank=None)
                assert torch.equal(local(buffer), local(whole)), (i, tuple(p.shape), key)


def equals_one_process(lies: Lies, shapes, options: dict[str, Any], dtype=torch.float32, steps: int = 5) -> None:
    pair = Pair(lies, shapes, **{"dtype": dtype} | options)
    for step in range(steps):
        pair.step(step)
        pair.compare()


@contextmanager
def counted_collectives():
    """Yields a list that gets (name, bytes that leave this rank) of every collective."""
    calls: list[tuple[str, int]] = []
    rank = dist.get_rank()
    originals = {name: getattr(dist, name) for name in ("all_to_all_single", "all_gather")}

    def all_to_all_single(receive, send, receive_splits, send_splits, **kwargs):
        assert send_splits[rank] == receive_splits[rank] == 0
        calls.append(("all_to_all_single", sum(send_splits) * send.element_size()))
        return originals["all_to_all_single"](receive, send, receive_splits, send_splits, **kwargs)

    def all_gather(heard, mine, **kwargs):
        calls.append(("all_gather", mine.nbytes))
        return originals["all_gather"](heard, mine, **kwargs)

    replacements: dict[str, Callable] = {"all_to_all_single": all_to_all_single, "all_gather": all_gather}
    for name, function in replacements.items():
        setattr(dist, name, function)
    try:
        yield calls
    finally:
        for name, function in originals.items():
            setattr(dist, name, function)


def traffic(lies: Lies, shapes, options: dict[str, Any]) -> tuple[int, list[tuple[str, int]]]:
    """How many waves a step has, and its collectives; there are no others, also none that DTensor would call."""
    pair = Pair(lies, shapes, **options)
    pair.step(0)
    pair.set_grads(1)
    with CommDebugMode() as everything, counted_collectives() as calls:
        pair.many.step()
    assert everything.get_total_counts() == len(calls), everything.get_comm_counts()
    pair.one.step()
    pair.compare()
    (bucket,) = pair.many._shares._buckets.values()
    return bucket.plan.waves, calls


def explained() -> str:
    """A table of a sharded parameter, a replicated one and one that nobody shares."""
    mesh = LIES["FSDP"].mesh()
    sharded = nn.Parameter(LIES["FSDP"].put(torch.zeros(64, 32), mesh))
    copied = nn.Parameter(LIES["replicated"].put(torch.zeros(2, 64), mesh))
    groups = [{"params": [("w", sharded), ("c", copied)]}, {"params": [("mine", nn.Parameter(torch.zeros(3, 4)))]}]
    return Muon(groups, compute_dtype=torch.bfloat16).explain()
