"""A byte-level GPT: pre-norm, rotary positions, GELU, no biases, no dropout, torch's initial weights.

Its matrices are such that FSDP2 and tensor parallelism can cut them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

BYTES = 256
ROTARY_BASE = 10000.0


@dataclass(frozen=True)
class Shape:
    """Blocks, width of the residual stream, attention heads, and the most bytes that a guess may look back on."""

    layers: int
    width: int
    heads: int
    context: int


class Gpt(nn.Module):
    """Logits [batch, length, 256] of the next byte from bytes [batch, length], length at most `shape.context`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        if shape.width % (2 * shape.heads):
            raise ValueError(f"width must be a multiple of twice the heads, got {shape.width} and {shape.heads}")
        self.embedding = nn.Embedding(BYTES, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width)
        self.head = nn.Linear(shape.width, BYTES, bias=False)
        cosines, sines = rotary_tables(shape.context, shape.width // shape.heads)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)

    def forward(self, text: Tensor) -> Tensor:
        cosines, sines = self.cosines[: text.shape[1]], self.sines[: text.shape[1]]
        stream = self.embedding(text)
        for block in self.blocks:
            stream = block(stream, cosines, sines)
        return self.head(self.norm(stream))

    def loss(self, windows: Tensor) -> Tensor:
        """Mean cross-entropy in nats per byte of int64 [batch, length + 1]: each byte but the first is guessed."""
        logits = self(windows[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


class Block(nn.Module):
    """Attention and a network of four times the width, both added to the stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.head_width = width // shape.heads
        self.attention_norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        # Three matrices, not one of three times the height: Muon orthogonalises each for itself.
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, stream: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        normed = self.attention_norm(stream)
        query, key, value = (
            # -1: with tensor parallelism a rank has some of the heads.
            project(normed).unflatten(2, (-1, self.head_width)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(
            rotate(query, cosines, sines), rotate(key, cosines, sines), value, is_causal=True
        )
        stream = stream + self.attention_out(mixed.transpose(1, 2).flatten(2))
        return stream + self.mlp_out(functional.gelu(self.mlp_in(self.mlp_norm(stream))))


def rotary_tables(context: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [context, width / 2] of rotary position embeddings (Su et al., https://arxiv.org/abs/2104.09864)."""
    frequencies = ROTARY_BASE ** -(torch.arange(0, width, 2) / width)
    angles = torch.outer(torch.arange(context), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """x [batch, heads, length, width] with its pairs (i, i + width / 2) turned by the angle of their position."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosines - second * sines, first * sines + second * cosines), dim=-1).to(x.dtype)
