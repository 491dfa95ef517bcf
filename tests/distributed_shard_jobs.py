"""What the ranks of a pool run with layout "shards": blocks of one matrix, beside the same blocks in one process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from distributed_jobs import LIES, OPTIONS, counted_collectives, full_tensors
from torch import nn
from torch.distributed.tensor.debug import CommDebugMode

from muon_kernels import Muon
from muon_kernels.distributed.dtensors import local

SHAPES = [(8, 12), (16, 4), (4, 4), (12, 32)]


def blocks_of_one_process(kind: str, blocks: str, options: dict[str, Any]) -> list[int]:
    """Seven steps of shards have the bits of equal blocks in one process. Returns the collectives of each step."""
    lies = LIES[kind]
    mesh = lies.mesh()
    full = full_tensors(SHAPES, 0, torch.float64)
    alone, shared = [nn.Parameter(t.clone()) for t in full], [nn.Parameter(lies.put(t, mesh)) for t in full]
    options = OPTIONS | {"compute_dtype": torch.float64} | options
    one = Muon(alone, layout=f"{blocks}:{dist.get_world_size()}", **options)
    many = Muon(shared, layout="shards", **options)
    collectives = []
    for step in range(7):
        for p, q, grad in zip(alone, shared, full_tensors(SHAPES, 100 + step, torch.float64), strict=True):
            p.grad, q.grad = grad.clone(), lies.put(grad, mesh)
        one.step()
        with CommDebugMode() as everything, counted_collectives() as calls:
            many.step()
        assert everything.get_total_counts() == len(calls)
        collectives.append(len(calls))
        if step == 2:  # a checkpoint goes on within the period
            resumed = Muon(shared, layout="shards", **options)
            resumed.load_state_dict(many.state_dict())
            many = resumed
        for p, q in zip(alone, shared, strict=True):
            assert torch.equal(local(q.detach()), local(lies.put(p.detach(), mesh))), (step, p.shape)
    return collectives


def a_rank_without_gradients() -> list[int]:
    """Where one rank of all has no gradients in a step of shards, the next whole step finds all ranks there."""
    lies = LIES["FSDP"]
    mesh = lies.mesh()
    params = [nn.Parameter(lies.put(t, mesh)) for t in full_tensors(SHAPES, 0)]
    optimizer = Muon(params, layout="shards", period=2)
    positions = []
    for step in range(4):
        for p, grad in zip(params, full_tensors(SHAPES, step), strict=True):
            p.grad = None if step == 1 and dist.get_rank() == 0 else lies.put(grad, mesh)
        optimizer.step()
        positions.append(optimizer.param_groups[0]["step_of_period"])
    return positions


def refused() -> str:
    try:
        Muon([nn.Parameter(torch.zeros(4, 4))], layout="shards", **LIES["DDP"].options())
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was raised")
