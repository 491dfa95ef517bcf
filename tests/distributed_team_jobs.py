"""What the ranks of a pool run with several meshes, groups and optimizers at a time, and over many steps."""

from __future__ import annotations

import torch
import torch.distributed as dist
from distributed_jobs import EXPERT_LIES, LIES, SHAPES, Lies, Pair
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate

from muon_kernels import Muon


def two_stages(kind: str) -> None:
    """Pipeline stages of 3 ranks and of 1, each with its own model; a stage without matrices has nothing to do."""
    first = dist.get_rank() < 3
    groups = [dist.new_group([0, 1, 2]), dist.new_group([3])]
    group = groups[0 if first else 1]
    mesh = DeviceMesh.from_group(group, "cpu")

    class Stage(Lies):
        def mesh(self):
            return mesh

        def options(self):
            return {name: group if name == "process_group" else value for name, value in super().options().items()}

    lies = LIES[kind]
    pair = Pair(Stage(lies.sides, lies.placements, lies.state_sharding), SHAPES if first else SHAPES[2:5])
    for step in range(2):
        pair.step(step)
        pair.compare()
    Muon([]).step()


def two_meshes() -> None:
    """Dense matrices on all ranks, experts on a mesh of their own, plain ones on nobody else's: one optimizer."""
    dense, experts = Pair(LIES["FSDP"], SHAPES), Pair(EXPERT_LIES["EP x FSDP on rows"], [(4, 6, 10)], layout="batch")
    plain = [nn.Parameter(torch.ones(4, 4)) for _ in range(2)]
    dense.many.add_param_group({"params": experts.shared, "layout": "batch"})
    dense.many.add_param_group({"params": plain[:1]})
    dense.one.add_param_group({"params": plain[1:]})
    dense.many.add_param_group({"params": [], "momentum": 0.5})
    experts.many = dense.many
    for step in range(3):
        experts.set_grads(step)
        experts.one.step()
        for p in plain:
            p.grad = torch.full_like(p, step + 1.0)
        dense.step(step)
        dense.compare()
        experts.compare()
        assert torch.equal(plain[0].detach(), plain[1].detach())


def one_group_two_grids() -> None:
    """HSDP and DDP over the same ranks in one optimizer: one group of processes, two meshes."""
    grid, line = Pair(LIES["HSDP"], SHAPES), Pair(LIES["DDP"], SHAPES[3:6])
    grid.many.add_param_group({"params": line.shared, "process_group": dist.group.WORLD})
    grid.one.add_param_group({"params": line.alone})
    line.one, line.many = grid.one, grid.many
    for step in range(2):
        line.set_grads(step)
        grid.step(step)
        grid.compare()
        line.compare()


def grows() -> None:
    """A group that is added later is planned with the next step; the state dict knows it at once."""
    pair, later = Pair(LIES["FSDP"], SHAPES), Pair(LIES["FSDP"], [(12, 5)])
    pair.step(0)
    for whose, more in ((pair.one, later.alone), (pair.many, later.shared)):
        whose.add_param_group({"params": more, "lr": 0.01, "momentum": 0.5})
    assert later.shared[0] in pair.many.state
    later.one, later.many = pair.one, pair.many
    for step in range(1, 3):
        later.set_grads(step)
        pair.step(step)
        pair.compare()
        later.compare()


def an_empty_state_is_loaded() -> None:
    """A checkpoint from before the first step of a process that works alone has no momenta: they are zero."""
    pair = Pair(LIES["FSDP"], SHAPES)
    pair.step(0)
    for whose in (pair.one, pair.many):
        whose.load_state_dict({"state": {}, "param_groups": whose.state_dict()["param_groups"]})
    pair.many.explain()
    pair.step(1)
    pair.compare()


def replicas_stay_equal(kind: str) -> None:
    """Fifty steps of matrices that travel and of those that every replica computes."""
    pair = Pair(LIES[kind], SHAPES)
    for step in range(50):
        pair.set_grads(step)
        pair.many.step()
    for p in pair.shared:
        whole = p.detach()
        if isinstance(whole, DTensor):  # gathers each replica's own shards
            whole = whole.redistribute(pair.mesh, [Replicate(), Replicate()]).to_local()
        everywhere = [torch.empty_like(whole) for _ in range(4)]
        dist.all_gather(everywhere, whole)
        assert all(torch.equal(everywhere[0], other) for other in everywhere)
