"""What the ranks of a pool run when gradients are missing, lie unusually, or come from a GradScaler."""

from __future__ import annotations

import torch
import torch.distributed as dist
from distributed_jobs import LIES, SHAPES, Pair, full_tensors
from torch.distributed.tensor import DTensor

from muon_kernels.distributed.dtensors import local


def grads_come_and_go(kind: str) -> None:
    """Without a gradient anywhere a parameter and its momentum stay as they are."""
    pair = Pair(LIES[kind], SHAPES)
    for step, without in enumerate([{0}, {1, 3, 5}, set(range(len(SHAPES))), set(), {8}]):
        pair.step(step, without)
        pair.compare()


def grads_on_some_ranks(kind: str) -> None:
    """Where only other ranks have a gradient, it counts as zero."""
    lies = LIES[kind]
    pair = Pair(lies, SHAPES)
    rank = dist.get_rank()
    for step in range(3):
        pair.set_grads(step)
        for i in range(0, len(SHAPES), 2):
            absent = (step + i) % 4
            whole = pair.alone[i].grad.clone()
            marks = lies.put(torch.full(SHAPES[i], -1), pair.mesh)
            everywhere = [torch.zeros(SHAPES[i]) for _ in range(4)]
            mine = DTensor.from_local(
                torch.full_like(local(marks), rank, dtype=torch.float32), pair.mesh, marks.placements, run_check=False,
                shape=marks.shape, stride=marks.stride(),
            )  # fmt: skip
            dist.all_gather(everywhere, mine.full_tensor())
            pair.alone[i].grad = torch.where(everywhere[0] == absent, 0.0, whole)
            if rank == absent:
                pair.shared[i].grad = None
        pair.one.step()
        pair.many.step()
        pair.compare()


def grads_with_gaps(kind: str) -> None:
    """Local gradients that are every other column of a buffer, or transposed storage."""
    pair = Pair(LIES[kind], SHAPES)
    for step in range(2):
        pair.set_grads(step)
        for i, p in enumerate(pair.shared):
            grad = local(p.grad)
            gaps = grad.repeat_interleave(2, dim=1)[:, ::2] if i % 2 else grad.t().contiguous().t()
            if isinstance(p.grad, DTensor):
                gaps = DTensor.from_local(
                    gaps, pair.mesh, p.grad.placements, run_check=False, shape=p.grad.shape, stride=p.grad.stride()
                )
            p.grad = gaps
        pair.one.step()
        pair.many.step()
        pair.compare()


def scaled(kind: str) -> None:
    """GradScaler: an infinity in one shard skips the step on every rank, as in one process."""
    pair = Pair(LIES[kind], SHAPES)
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1) for _ in range(2)]
    for step in range(4):
        grads = [grad * 8 for grad in full_tensors(SHAPES, 100 + step)]
        if step == 1:
            grads[4][-1, -1] = torch.inf
        for i, grad in enumerate(grads):
            pair.alone[i].grad, pair.shared[i].grad = grad.clone(), pair.lies.put(grad, pair.mesh)
        for scaler, optimizer in zip(scalers, (pair.one, pair.many), strict=True):
            scaler.scale(torch.tensor(1.0))
            scaler.step(optimizer)
            scaler.update()
        pair.compare()
    assert scalers[0].get_scale() == scalers[1].get_scale() == 32.0
