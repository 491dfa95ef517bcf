"""What the ranks of a pool run on a small model: FSDP2, tensor parallel, DDP; checkpoints that change the topology."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed_jobs import mesh_of
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from muon_kernels import Muon
from muon_kernels.distributed.dtensors import is_dtensor

KINDS = ("alone", "FSDP", "HSDP", "FSDP x TP", "DDP", "DDP, state in rows")


class Net(nn.Module):
    """Two matrices that tensor parallelism cuts, one that it does not, and vectors."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(10, 14, bias=False, dtype=dtype)
        self.down = nn.Linear(14, 10, bias=False, dtype=dtype)
        self.norm = nn.LayerNorm(10, dtype=dtype)
        self.last = nn.Linear(10, 7, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(x + self.down(torch.relu(self.up(x)))))


def build(kind: str, dtype: torch.dtype = torch.float64, **options) -> tuple[Net, Muon]:
    """The model as `kind` says, and its optimizer."""
    model = Net(dtype)
    if kind in ("HSDP", "FSDP x TP"):
        sides = (2, dist.get_world_size() // 2)
        mesh = mesh_of(*sides, names=("replicate", "shard") if kind == "HSDP" else ("dp", "tp"))
        if kind == "FSDP x TP":
            parallelize_module(model, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
            mesh = mesh["dp"]
        fully_shard(model, mesh=mesh)
    elif kind == "FSDP":
        fully_shard(model, mesh=mesh_of(dist.get_world_size()))
    if kind.startswith("DDP"):
        options |= {"process_group": dist.group.WORLD, "state_sharding": "rows" if "rows" in kind else "match"}
    named = dict(model.named_parameters())
    matrices = [(n, p) for n, p in named.items() if p.ndim == 2]
    vectors = [(n, p) for n, p in named.items() if p.ndim == 1]
    groups = [{"params": matrices, "lr": 0.05}, {"params": vectors, "use_muon": False, "lr": 0.01}]
    return model, Muon(groups, weight_decay=0.1, **options)


def steps(model: Net, optimizer: Muon, first: int, last: int) -> None:
    """Steps with the same full gradients whatever the topology."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
            if is_dtensor(p):
                grad = distribute_tensor(grad, p.device_mesh, p.placements, src_data_rank=None)
            p.grad = grad
        optimizer.step()


def whole(tensor: Tensor) -> list:
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).double().tolist()


def values(model: Net, optimizer: Muon) -> dict[str, list]:
    """Every parameter and momentum, whole."""
    found = {name: whole(p) for name, p in model.named_parameters()}
    found |= {
        f"{name}: {key}": whole(value)
        for name, p in model.named_parameters()
        for key, value in optimizer.state[p].items()
        if isinstance(value, Tensor) and value.ndim
    }
    return found


def save_and_go_on(kind: str, folder: str, options: dict) -> dict[str, list]:
    model, optimizer = build(kind, **options)
    steps(model, optimizer, 0, 2)
    save(model, optimizer, folder)
    steps(model, optimizer, 2, 4)
    return values(model, optimizer)


def save(model: Net, optimizer: Muon, folder: str) -> None:
    states = get_state_dict(model, optimizer)
    dcp.save(dict(zip(("model", "optimizer"), states, strict=True)), checkpoint_id=folder)


def load(model: Net, optimizer: Muon, folder: str) -> None:
    states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.load(states, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=states["model"], optim_state_dict=states["optimizer"])


def load_and_go_on(kind: str, folder: str, options: dict) -> dict[str, list]:
    model, optimizer = build(kind, **options)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    load(model, optimizer, folder)
    dtypes = {s["momentum_buffer"].dtype for s in optimizer.state.values() if "momentum_buffer" in s}
    assert dtypes == {options.get("momentum_dtype", options.get("dtype", torch.float64))}, dtypes
    steps(model, optimizer, 2, 4)
    return values(model, optimizer)


def keys_before_the_first_step(kind: str) -> tuple[list, list]:
    """The keys of the state dict, and the placements of the momenta beside those of the parameters."""
    _, optimizer = build(kind)
    state = optimizer.state_dict()["state"]
    lies = [
        (str(getattr(p, "placements", None)), str(getattr(optimizer.state[p]["momentum_buffer"], "placements", None)))
        for p in optimizer.param_groups[0]["params"]
    ]
    return [(number, sorted(entry)) for number, entry in sorted(state.items())], lies


def round_trip_in_place(kind: str) -> None:
    """The optimizer's own state dict, without a checkpoint library."""
    (model, optimizer), (other_model, other) = build(kind), build(kind)
    steps(model, optimizer, 0, 2)
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(optimizer.state_dict())
    for m, o in ((model, optimizer), (other_model, other)):
        steps(m, o, 2, 4)
    assert values(model, optimizer) == values(other_model, other)


def trained(kind: str, micro_batches: int = 1, clip: float = math.inf) -> list[float]:
    """Losses of a real training run; every rank has its part of the batch, or all of it with tensor parallelism.

    Gradients are accumulated over micro-batches, clipped to the norm `clip`, and stepped with a falling lr.
    """
    model, optimizer = build(kind, torch.float32, compute_dtype=torch.float32)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, gamma=0.5)
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(16, 10, generator=generator), torch.randn(16, 7, generator=generator)
    parts = {"alone": 1, "FSDP x TP": 2}.get(kind, dist.get_world_size() if dist.is_initialized() else 1)
    rank = 0 if kind == "alone" else dist.get_rank() // (dist.get_world_size() // parts)
    own = slice(rank * 16 // parts, (rank + 1) * 16 // parts)
    losses = []
    for _ in range(20):
        mean = torch.zeros(())
        for number, (inputs, targets) in enumerate(zip(*(t[own].chunk(micro_batches) for t in (x, y)), strict=True)):
            if isinstance(model, FSDPModule):
                model.set_requires_gradient_sync(number == micro_batches - 1)
            loss = (model(inputs) - targets).square().mean() / micro_batches
            loss.backward()
            mean += loss.detach()
        if kind != "alone":
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
            if kind.startswith("DDP"):
                for p in model.parameters():
                    dist.all_reduce(p.grad)
                    p.grad /= parts
        losses.append(float(mean))
        if clip < math.inf:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return losses
