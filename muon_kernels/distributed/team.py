"""The processes that share parameters, and the collectives that a step calls on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from .errors import CollectiveFailed
from .exchange import Exchange
from .layout import Mesh


@dataclass(frozen=True, eq=False)
class Team:
    """All ranks of a device mesh, in one process group.

    rank: this process in the group.
    mesh: coordinates by rank in the group.
    notes: the device of what is exchanged besides matrices: the CPU if the group's backend takes it.
    """

    group: dist.ProcessGroup
    device_mesh: DeviceMesh
    mesh: Mesh
    rank: int
    notes: torch.device

    @classmethod
    def of(cls, device_mesh: DeviceMesh) -> Team:
        """The team of a mesh of any dimension. Collective over the mesh unless that is 1-D or the whole world."""
        ranks = device_mesh.mesh.flatten().tolist()
        group: dist.ProcessGroup | None
        if device_mesh.ndim == 1:
            group = device_mesh.get_group()
        elif len(ranks) == dist.get_world_size():
            group = dist.group.WORLD
        else:
            group = dist.new_group(sorted(ranks), use_local_synchronization=True)
        assert group is not None
        coordinates = dict(zip(ranks, np.ndindex(*device_mesh.shape), strict=True))
        in_order = tuple(coordinates[rank] for rank in dist.get_process_group_ranks(group))
        cpu = "cpu" in str(dist.get_backend_config(group))
        notes = torch.device("cpu" if cpu else device_mesh.device_type)
        return cls(group, device_mesh, Mesh(tuple(device_mesh.shape), in_order), dist.get_rank(group), notes)

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self.mesh.size

    def all_gather(self, mine: Tensor, what: str) -> Tensor:
        """Everybody's `mine`, stacked, on the CPU. All ranks must give the same shape and dtype."""
        with _named(what):
            dist.get_rank(self.group)  # raises if the group was destroyed; gloo would still answer
            mine = mine.to(self.notes)
            heard = mine.new_empty((self.size, *mine.shape))
            dist.all_gather(list(heard.unbind(0)), mine, group=self.group)
        return heard.cpu()

    def sum(self, tensor: Tensor, what: str) -> None:
        """Adds up everybody's `tensor`, in place."""
        with _named(what):
            dist.all_reduce(tensor, group=self.group)

    def start(self, exchange: Exchange, send: Tensor, receive: Tensor, what: str) -> Transfer:
        """Begins an all-to-all of `send` into `receive`, buffers of the exchange's sizes; what is discarded or kept
        stays as it is. No collective if nothing moves."""
        work = None
        if exchange.moves:
            with _named(what):
                work = dist.all_to_all_single(
                    receive[: sum(exchange.receive_splits)],
                    send[: sum(exchange.send_splits)],
                    list(exchange.receive_splits),
                    list(exchange.send_splits),
                    group=self.group,
                    async_op=True,
                )
        return Transfer(receive, work, what)


@dataclass(frozen=True)
class Transfer:
    """An exchange on its way."""

    buffer: Tensor
    work: dist.Work | None
    what: str

    def wait(self) -> Tensor:
        """The receive buffer; on a CUDA device the current stream waits, not the host."""
        if self.work is not None:
            with _named(self.what):
                self.work.wait()
        return self.buffer


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise CollectiveFailed(f"{what} failed: {error}") from error
