"""Trains a small transformer on several processes, with Muon for its hidden matrices and AdamW for the rest.

    torchrun --nproc-per-node 2 examples/fsdp2_train.py                  # FSDP2
    torchrun --nproc-per-node 4 examples/fsdp2_train.py --hsdp           # two replicas, each of them sharded
    torchrun --nproc-per-node 4 examples/fsdp2_train.py --tp 2           # FSDP2 and tensor parallelism
    torchrun --nproc-per-node 2 examples/fsdp2_train.py --ddp            # DDP

With --checkpoint FOLDER it saves there at the end, and goes on from what it finds there: on another number of processes
or with another of the above, if you like. NCCL on GPUs, gloo on CPUs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from _fsdp2_train_text import read_text, windows
from _gpt import Gpt, Shape
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from muon_kernels import Muon

HEAD_WIDTH = 16


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--ddp", action="store_true", help="every rank holds the whole model")
    how.add_argument("--hsdp", action="store_true", help="two replicas, each of them sharded")
    how.add_argument(
        "--tp", type=int, default=1, metavar="N", help="tensor parallelism over N ranks, FSDP2 over the rest"
    )
    parser.add_argument("--steps", type=int, default=100, help="the step to stop at")
    parser.add_argument("--batch", type=int, default=16, help="windows a step, over all ranks")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--text", type=Path, help="a file to learn; default: Python's own library")
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER")
    parser.add_argument("--explain", action="store_true", help="print what Muon does with every parameter")
    return parser.parse_args(arguments)


def tensor_parallel(model: Gpt, mesh: DeviceMesh) -> None:
    """Cuts heads and hidden units over the ranks of a 1-D mesh."""
    columns = dict.fromkeys(("query", "key", "value", "mlp_in"), ColwiseParallel())
    rows = dict.fromkeys(("attention_out", "mlp_out"), RowwiseParallel())
    for block in model.blocks:
        parallelize_module(block, mesh, columns | rows)


def place(model: Gpt, options: argparse.Namespace, device: str) -> tuple[nn.Module, DeviceMesh | None]:
    """The model on all ranks, and the mesh over which they share the batch (None: all of them)."""
    world = dist.get_world_size()
    if options.ddp:
        return DistributedDataParallel(model), None
    if options.hsdp:
        mesh = init_device_mesh(device, (2, world // 2), mesh_dim_names=("replicate", "shard"))
    elif options.tp > 1:
        grid = init_device_mesh(device, (world // options.tp, options.tp), mesh_dim_names=("data", "tensor"))
        tensor_parallel(model, grid["tensor"])
        mesh = grid["data"]
    else:
        mesh = init_device_mesh(device, (world,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, mesh if options.tp > 1 else None


def build_optimizer(model: nn.Module, *, ddp: bool) -> Muon:
    """Muon for the matrices of the blocks. DTensors say themselves where they lie; DDP's tensors need the group."""
    named = list(model.named_parameters())
    hidden = [(name, p) for name, p in named if "blocks" in name and p.ndim == 2]
    others = [(name, p) for name, p in named if not ("blocks" in name and p.ndim == 2)]
    groups = [{"params": hidden, "lr": 0.02}, {"params": others, "use_muon": False, "lr": 3e-3}]
    return Muon(groups, weight_decay=0.01, process_group=dist.group.WORLD if ddp else None)


class Training:
    """What a checkpoint holds."""

    def __init__(self, model: nn.Module, optimizer: Muon) -> None:
        self.model, self.optimizer, self.step = model, optimizer, 0

    def _state(self) -> dict[str, object]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "step": self.step}

    def save(self, folder: Path) -> None:
        """Every rank writes its part."""
        dcp.save(self._state(), storage_writer=dcp.FileSystemWriter(folder, overwrite=True))

    def load(self, folder: Path) -> None:
        """Every rank reads its part, whoever wrote it."""
        state = self._state()
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.step = int(state["step"])


def train(options: argparse.Namespace) -> list[float]:
    """Trains; returns the mean loss of every step."""
    rank, device = dist.get_rank(), "cuda" if torch.cuda.is_available() else "cpu"
    if options.tp < 1 or dist.get_world_size() % (2 if options.hsdp else options.tp):
        raise ValueError(f"{dist.get_world_size()} ranks cannot be divided as {options} asks")
    if options.width < HEAD_WIDTH or options.width % HEAD_WIDTH:
        raise ValueError(f"--width must be a multiple of {HEAD_WIDTH}, got {options.width}")
    torch.manual_seed(0)
    shape = Shape(options.layers, options.width, options.width // HEAD_WIDTH, options.context)
    model, data = place(Gpt(shape).to(device), options, device)
    training = Training(model, build_optimizer(model, ddp=options.ddp))
    if options.checkpoint and (options.checkpoint / ".metadata").exists():
        training.load(options.checkpoint)
    if options.explain and rank == 0:
        print(training.optimizer.explain())
    share, shares = (data.get_local_rank(), data.size()) if data else (rank, dist.get_world_size())
    if options.batch % shares:
        raise ValueError(f"--batch must be a multiple of {shares}, got {options.batch}")
    text, losses = read_text(options.text), []
    while training.step < options.steps:
        own = windows(text, training.step, options.batch, options.context).chunk(shares)[share].to(device)
        loss = F.cross_entropy(model(own[:, :-1]).flatten(0, 1), own[:, 1:].flatten())
        loss.backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
        training.step += 1
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(float(mean) / dist.get_world_size())
        if rank == 0 and (training.step % 10 == 0 or training.step == options.steps):
            print(f"step {training.step}: loss {losses[-1]:.4f}", flush=True)
    if options.checkpoint:
        training.save(options.checkpoint)
    return losses


def main() -> None:
    """For torchrun."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    options = parse(None)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        train(options)
        # Without it processes now and then abort as they exit: gloo, torch 2.13, 12 of 36 runs, with torch's AdamW too.
        dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
