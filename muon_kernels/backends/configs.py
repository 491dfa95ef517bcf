"""Which tiles Triton computes a product with: a pure function of op, shape, dtype and card.

configs.json holds, for a compute capability and an op, candidate tile configurations with three times each, in
microseconds: what a wave of tiles takes before and after its sum over k, and what a unit of k takes for a tile that has
its multiprocessor for itself and for a full wave. The choice is the candidate whose waves take the least time together.
`bench/tune_triton.py` measures and writes the file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import resources
from typing import Any

DATA_FILE = "configs.json"

_SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Bytes that one program can have, by the first compute capability that has them."""


@dataclass(frozen=True)
class GemmConfig:
    """Tile of the result, step of k, warps, pipeline stages, and rows of tiles that are walked together."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    group: int


@dataclass(frozen=True)
class Candidate:
    """A configuration, the programs of it that a multiprocessor runs at once, and what a wave of them costs."""

    config: GemmConfig
    resident: int
    fixed_us: float
    alone_us_per_k: float
    full_us_per_k: float

    def cost(self, tiles: int, k: int, processors: int) -> float:
        """Microseconds for `tiles` tiles."""
        waves, rest = divmod(-(-tiles // processors), self.resident)
        full = self.fixed_us + k * self.full_us_per_k
        alone = self.fixed_us + k * self.alone_us_per_k
        return waves * full + (0 if not rest else alone if rest == 1 else full)


@lru_cache(maxsize=4096)
def gemm_config(op: str, batch: int, m: int, n: int, k: int, itemsize: int, sm: int, processors: int) -> GemmConfig:
    """The configuration for a batch of products [m, k] [k, n].

    Args:
        op: "symm_gemm" (then m == n, and half the tiles are computed) or "gemm_add".
        itemsize: bytes of an operand's element: 2 runs on tensor cores, 4 does not.
        sm: compute capability, 90 for 9.0.
        processors: the card's multiprocessors.
    """

    def cost(candidate: Candidate) -> float:
        config = candidate.config
        tiles = -(-m // config.block_m) * -(-n // config.block_n)
        if op == "symm_gemm":
            # Of whole tiles the diagonal crosses max(rows, cols) of them.
            tiles = (tiles + -(-m // config.block_m)) // 2
        return candidate.cost(batch * tiles, k, processors)

    config = min(candidates(op, itemsize, sm), key=cost).config
    if op == "symm_gemm" and m < 2 * config.group * config.block_m:
        # Bands as low as they can be: few matrices' operands fit the cache anyway, and no program starts in vain.
        return replace(config, group=max(1, config.block_n // config.block_m))
    return config


@cache
def candidates(op: str, itemsize: int, sm: int) -> tuple[Candidate, ...]:
    """The candidates for a card; a card that was not measured takes those of the next older one."""
    data = _data()
    measured = max(int(key) for key in data if int(key) <= sm)
    entries = data[str(measured)]["16 bit" if itemsize == 2 else "32 bit"][op]
    return tuple(Candidate(GemmConfig(*entry["config"]), entry["resident"], *entry["us"]) for entry in entries)


def shared_memory_limit(sm: int) -> int:
    """Bytes of shared memory that one program can have."""
    return _SHARED_MEMORY[max(first for first in _SHARED_MEMORY if first <= sm)]


@cache
def _data() -> dict[str, Any]:
    return json.loads(resources.files(__package__).joinpath(DATA_FILE).read_text())
