"""The matrices of well-known models, to plan for: the shapes that Muon steps, embeddings and heads left out."""

from __future__ import annotations

from typing import NamedTuple


class Transformer(NamedTuple):
    """A decoder: its width, that of its keys and values, that of its MLP, and whether that has a gate."""

    layers: int
    width: int
    kv_width: int
    mlp_width: int
    gated: bool = True

    def shapes(self) -> dict[str, tuple[int, int]]:
        """[out, in] of every matrix, by name."""
        d, kv, mlp = self.width, self.kv_width, self.mlp_width
        layer = {"q": (d, d), "k": (kv, d), "v": (kv, d), "o": (d, d), "up": (mlp, d), "down": (d, mlp)}
        if self.gated:
            layer["gate"] = (mlp, d)
        return {f"{i}.{name}": shape for i in range(self.layers) for name, shape in layer.items()}


def is_row_wise(name: str) -> bool:
    """Whether tensor parallelism cuts this matrix's columns, the inputs that the matrix before it left on the ranks."""
    return name.endswith((".o", ".down"))


MODELS = {
    "gpt2": Transformer(12, 768, 768, 3072, gated=False),
    "llama-8b": Transformer(32, 4096, 1024, 14336),
    "llama-70b": Transformer(80, 8192, 1024, 28672),
    "llama-405b": Transformer(126, 16384, 1024, 53248),
}
"""GPT-2 small (Radford et al. 2019); Llama 3 (arXiv:2407.21783, table 3)."""
