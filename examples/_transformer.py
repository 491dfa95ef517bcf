"""A small decoder over bytes, in matrices that FSDP2 and tensor parallelism can cut, and the text that it learns."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

VOCABULARY = 256
HEAD_WIDTH = 16


class Block(nn.Module):
    """Attention and MLP, each after a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, width] to the same."""
        y = self.norm1(x)
        # -1: with tensor parallelism a rank has some of the heads.
        q, k, v = (m(y).unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for m in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Bytes [batch, time] to logits [batch * time, 256]."""

    def __init__(self, layers: int, width: int, context: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next byte."""
        y = self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            y = block(y)
        return self.head(self.norm(y).flatten(0, 1))  # in one step: FSDP2 warns of modules that return views


def tensor_parallel(model: Transformer, mesh: DeviceMesh) -> None:
    """Cuts heads and hidden units over the ranks of a 1-D mesh."""
    column, row = ColwiseParallel(), RowwiseParallel()
    for block in model.blocks:
        parallelize_module(block, mesh, {"q": column, "k": column, "v": column, "o": row, "up": column, "down": row})


def read_text(path: Path | None) -> Tensor:
    """The bytes of a file; by default those of Python's own library, which is on every machine that runs this."""
    files = [path] if path else sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8)


def windows(text: Tensor, step: int, batch: int, context: int) -> tuple[Tensor, Tensor]:
    """The step's [batch, context] bytes and those that follow them: the same whatever the number of ranks."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(text) - context, (batch,), generator=generator)
    found = torch.stack([text[i : i + context + 1] for i in starts.tolist()]).long()
    return found[:, :-1], found[:, 1:]
