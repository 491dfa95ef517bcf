"""Which tiles Triton computes a product with: a pure function of op, shape, dtype, layout and card.

configs.json holds, for a compute capability and an op, candidate tile configurations with three times each, in
microseconds: what a wave of tiles takes before and after its sum over k, and what a unit of k takes for a tile that has
its multiprocessor for itself and for a full wave. The choice is the candidate whose waves take the least time together.
`bench/tune_triton.py` measures and writes the file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Any

DATA_FILE = "configs.json"

_SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Bytes that one program can have, by the first compute capability that has them."""


@dataclass(frozen=True)
class GemmConfig:
    """Tile of the result, step of k, warps, pipeline stages, and rows of tiles that are walked together.

    programs: 0 for a program a tile that loads through pointers; else that many programs a multiprocessor, which load
        through tensor descriptors and go from tile to tile.
    registers: the most that a thread may use; None leaves it to the compiler.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    group: int
    programs: int = 0
    registers: int | None = None


@dataclass(frozen=True)
class Candidate:
    """A configuration, the programs of it that a multiprocessor runs at once, and what a wave of them costs."""

    config: GemmConfig
    resident: int
    fixed_us: float
    alone_us_per_k: float
    full_us_per_k: float

    def waves(self, tiles: int, processors: int) -> tuple[int, int]:
        """How many waves `tiles` tiles take that fill the card, and how many with one tile a multiprocessor."""
        full, rest = divmod(-(-tiles // processors), self.resident)
        return (full, 1) if rest == 1 else (full + (rest > 0), 0)

    def cost(self, tiles: int, k: int, processors: int) -> float:
        """Microseconds for `tiles` tiles."""
        full, alone = self.waves(tiles, processors)
        return (full + alone) * self.fixed_us + k * (full * self.full_us_per_k + alone * self.alone_us_per_k)


def tile_count(op: str, config: GemmConfig, m: int, n: int) -> int:
    """Tiles of one matrix; of a symmetric one, those in the lower triangle of blocks as high as a tile is wide."""
    rows, cols = -(-m // config.block_m), -(-n // config.block_n)
    if op == "symm_gemm":
        return cols * (cols + 1) // 2 * (config.block_n // config.block_m)
    return rows * cols


@lru_cache(maxsize=4096)
def gemm_config(
    op: str, batch: int, m: int, n: int, k: int, itemsize: int, sm: int, processors: int, *, wide: bool, described: bool
) -> GemmConfig | None:
    """The configuration for a batch of products [m, k] [k, n], None if there is none for how the operands lie.

    Args:
        op: "symm_gemm" (then m == n, and half the tiles are computed) or "gemm_add".
        itemsize: bytes of an operand's element: 2 runs on tensor cores, 4 does not.
        sm: compute capability, 90 for 9.0.
        processors: the card's multiprocessors.
        wide: whether both operands can be loaded through pointers, 16 bytes at a time.
        described: whether tensor descriptors can hold both operands.
    """

    legal = [c for c in candidates(op, itemsize, sm) if (described if c.config.programs else wide)]
    return cheapest(legal, op, batch, m, n, k, processors).config if legal else None


def cheapest(legal: Sequence[Candidate], op: str, batch: int, m: int, n: int, k: int, processors: int) -> Candidate:
    """The candidate whose waves take the least time; see `gemm_config`."""
    return min(legal, key=lambda c: c.cost(batch * tile_count(op, c.config, m, n), k, processors))


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
