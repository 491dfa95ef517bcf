"""What the products share: a problem list as kernel arguments, and one tile's sum over k.

A launch takes up to MAX_ENTRIES entries of a problem list, each a batch of equal matrices. Entries travel by value as
tuples, so a captured CUDA graph holds them and nothing is uploaded. Entries share a launch if they share a tile
configuration and a memory layout: the configuration depends on an entry alone, so the neighbours change no bit, and
the layout decides how wide loads are.

Operands are loaded through pointers or, where the configuration says so and they lie as it takes, through tensor
descriptors (TMA on Hopper and later). With pointers a program computes one tile; it finds its entry by comparing its
index with the entries' last tiles. With descriptors, which take long to build, as many programs as the card runs at
once go from entry to entry and share out each one's tiles.

Offsets are 64 bit. A tile's sum over k has one order, whatever the tile's size and however it is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configs import GemmConfig, gemm_config, tile_count
from ..device import capability
from .launch import ALIGNMENT, Launch, processors, unspecialized

MAX_ENTRIES = 8

NARROW = GemmConfig(block_m=64, block_n=64, block_k=32, warps=8, stages=2, group=4)
"""For operands that cannot be loaded 16 bytes at a time: with loads element by element, a larger tile spills."""

_INTERPRETED = (80, 108)
"""The card that the interpreter stands for: compute capability and multiprocessors."""


@dataclass(frozen=True)
class Kind:
    """What entries that share a launch have in common."""

    config: GemmConfig
    even_k: bool
    layouts: tuple[Layout, ...]
    """Of a, b and whatever belongs to the result."""


def plan(
    op: str,
    kernel: triton.JITFunction,
    a: list[Tensor],
    b: list[Tensor],
    c: list[Tensor],
    outs: list[Tensor],
    factors: dict[str, float],
) -> list[Launch]:
    """The launches that compute a problem list; `kernel` takes the arguments that `launch` builds, and `factors`."""
    launches = []
    layouts = [tuple([layout(x) for x in results]) for results in zip(*([c, outs] if c else [outs]), strict=True)]
    for kind, members in kinds(op, a, b, layouts).items():
        for first in range(0, len(members), MAX_ENTRIES):
            chosen = members[first : first + MAX_ENTRIES]
            results = {"c": _fields(c, chosen) if c else None, "out": _fields(outs, chosen)}
            launches.append(launch(op, kernel, kind, a, b, chosen, results, factors))
    return launches


def kinds(op: str, a: list[Tensor], b: list[Tensor], layouts: Sequence[tuple[Layout, ...]]) -> dict[Kind, list[int]]:
    """Indices of the entries of a problem list by kind; those with an empty result are left out.

    Args:
        op: whose configurations are used.
        layouts: of each entry, those of what belongs to its result.
    """
    groups: dict[Kind, list[int]] = {}
    for i, (left, right, others) in enumerate(zip(a, b, layouts, strict=True)):
        batch, m, k = left.shape
        n = right.shape[2]
        if batch * m * n:
            one, other = layout(left), layout(right)
            wide = one.wide and other.wide
            described = one.described and other.described
            config = _config(op, batch, m, n, k, left.dtype, left.device, wide, described) or NARROW
            groups.setdefault(Kind(config, k % config.block_k == 0, (one, other, *others)), []).append(i)
    return groups


def launch(
    op: str,
    kernel: triton.JITFunction,
    kind: Kind,
    a: list[Tensor],
    b: list[Tensor],
    chosen: list[int],
    results: dict[str, Any],
    factors: dict[str, Any],
) -> Launch:
    """One launch for the chosen entries; `results` are the kernel's arguments before the sizes, `factors` after."""
    config = kind.config
    sizes = []
    end = 0
    for i in chosen:
        batch, m, k = a[i].shape
        n = b[i].shape[2]
        end += batch * tile_count(op, config, m, n)
        sizes.append((m, n, k, unspecialized(end)))
    if end >= 2**31:
        raise ValueError(f"a launch may have fewer than 2^31 tiles, got {end}")
    arguments = {
        "a": _fields(a, chosen),
        "b": _fields(b, chosen),
        **results,
        "sizes": tuple(sizes),
        **factors,
        "ENTRIES": len(chosen),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP": config.group,
        "EVEN_K": kind.even_k,
        "PROGRAMS": config.programs,
        "TRANS_A": kind.layouts[0].unit == 0,
        "TRANS_B": kind.layouts[1].unit == 0,
    }
    programs = min(end, config.programs * _card(a[chosen[0]].device)[1]) if config.programs else end
    return Launch(kernel, (programs,), arguments, config.warps, config.stages, config.registers)


def _fields(tensors: list[Tensor], chosen: list[int]) -> tuple[tuple[Any, ...], ...]:
    """An operand of the chosen entries as kernels take it."""
    return tuple([(tensors[i], *tensors[i].stride()) for i in chosen])


def _config(
    op: str,
    batch: int,
    m: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    device: torch.device,
    wide: bool,
    described: bool,
) -> GemmConfig | None:
    return gemm_config(op, batch, m, n, k, dtype.itemsize, *_card(device), wide=wide, described=described)


def _card(device: torch.device) -> tuple[int, int]:
    """Compute capability and multiprocessors."""
    return _INTERPRETED if device.type == "cpu" else (capability(device), processors(device))


@dataclass(frozen=True)
class Layout:
    """What Triton specialises a kernel on, as far as it decides the width of loads and stores."""

    unit: int | None
    """The dimension whose stride is 1."""
    aligned: bool
    even: tuple[bool, bool]
    described: bool
    """Whether a tensor descriptor can hold it."""

    @property
    def wide(self) -> bool:
        """Whether 16 bytes can be loaded at a time."""
        return self.unit is not None and self.aligned and self.even[self.unit]


def layout(x: Tensor) -> Layout:
    strides = x.stride()
    unit = 1 if strides[2] == 1 else 0 if strides[1] == 1 else None
    # Triton knows of an integer only whether 16 divides it.
    aligned = x.data_ptr() % ALIGNMENT == 0 and all(s % 16 == 0 for s in strides if s != 1)
    described = (
        unit is not None and aligned and all(1 < s < 2**39 // x.itemsize for s in (strides[0], strides[2 - unit]))
    )
    return Layout(unit, aligned, (x.shape[1] % 16 == 0, x.shape[2] % 16 == 0), described)


@triton.jit
def pick(entries, FIELD: tl.constexpr, entry, ENTRIES: tl.constexpr):
    """entries[entry][FIELD], for an entry that only the running program knows."""
    value = entries[0][FIELD]
    for i in tl.static_range(1, ENTRIES):
        value = tl.where(entry == i, entries[i][FIELD], value)
    return value


@triton.jit
def find_entry(sizes, ENTRIES: tl.constexpr):
    """This program's entry, and its tile counted from that entry's first tile."""
    program = tl.program_id(0)
    entry = 0
    first = 0
    for i in tl.static_range(0, ENTRIES - 1):
        end = (sizes[i][3] >> 1).to(tl.int32)
        entry = tl.where(program >= end, i + 1, entry)
        first = tl.where(program >= end, end, first)
    return entry, program - first


@triton.jit
def pick_sizes(sizes, entry, ENTRIES: tl.constexpr):
    """m, n, k of an entry."""
    return pick(sizes, 0, entry, ENTRIES), pick(sizes, 1, entry, ENTRIES), pick(sizes, 2, entry, ENTRIES)


@triton.jit
def pick_matrix(operand, entry, batch, ENTRIES: tl.constexpr):
    """Address, row stride and column stride of matrix `batch` of an entry."""
    start = pick(operand, 0, entry, ENTRIES)
    start += batch.to(tl.int64) * pick(operand, 1, entry, ENTRIES)
    return start, pick(operand, 2, entry, ENTRIES), pick(operand, 3, entry, ENTRIES)


@triton.jit
def pointers(start, row_stride, col_stride, rows, cols):
    return start + rows.to(tl.int64)[:, None] * row_stride + cols.to(tl.int64)[None, :] * col_stride


@triton.jit
def share_of_entry(sizes, entry, begin, ENTRIES: tl.constexpr):
    """Tiles of an entry, whose first has number `begin` in the launch, and the first of them that is this program's.

    Programs take tiles in turn, on through all entries, so that no two entries' rests fall to the same programs.
    """
    end = (pick(sizes, 3, entry, ENTRIES) >> 1).to(tl.int32)
    programs = tl.num_programs(0)
    return end - begin, (tl.program_id(0) - begin % programs + programs) % programs


@triton.jit
def describe(
    operand,
    entry,
    batch,
    rows,
    cols,
    ENTRIES: tl.constexpr,
    TRANS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """The descriptor of an entry's matrices as they lie in memory: the transposed ones if TRANS."""
    start = pick(operand, 0, entry, ENTRIES)
    stride = pick(operand, 1, entry, ENTRIES).to(tl.int64)
    if TRANS:
        col = pick(operand, 3, entry, ENTRIES).to(tl.int64)
        return tl.make_tensor_descriptor(start, [batch, cols, rows], [stride, col, 1], [1, BLOCK_COLS, BLOCK_ROWS])
    else:
        row = pick(operand, 2, entry, ENTRIES).to(tl.int64)
        return tl.make_tensor_descriptor(start, [batch, rows, cols], [stride, row, 1], [1, BLOCK_ROWS, BLOCK_COLS])


@triton.jit
def _load(descriptor, batch, row, col, TRANS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """A block of a matrix; zero outside."""
    if TRANS:
        return tl.trans(descriptor.load([batch, col, row]).reshape(BLOCK_COLS, BLOCK_ROWS))
    else:
        return descriptor.load([batch, row, col]).reshape(BLOCK_ROWS, BLOCK_COLS)


@triton.jit
def described_product_tile(
    a,
    b,
    batch,
    row,
    col,
    k,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TRANS_A: tl.constexpr,
    TRANS_B: tl.constexpr,
):
    """`product_tile` of descriptors."""
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        left = _load(a, batch, row, start, TRANS_A, BLOCK_M, BLOCK_K)
        right = _load(b, batch, start, col, TRANS_B, BLOCK_K, BLOCK_N)
        total = tl.dot(left, right, total, input_precision="ieee")
    return total


@triton.jit
def product_tile(
    a,
    a_row,
    a_col,
    b,
    b_row,
    b_col,
    rows,
    cols,
    m,
    n,
    k,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """Sum over k of a[rows, k] b[k, cols] in float32; what lies outside the matrices counts as zero."""
    ks = tl.arange(0, BLOCK_K)
    a_tile = pointers(a, a_row, a_col, rows, ks)
    b_tile = pointers(b, b_row, b_col, ks, cols)
    a_step = tl.cast(a_col, tl.int64) * BLOCK_K
    b_step = tl.cast(b_row, tl.int64) * BLOCK_K
    row_mask = (rows < m)[:, None]
    col_mask = (cols < n)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        if EVEN_K:
            left = tl.load(a_tile, row_mask, 0.0)
            right = tl.load(b_tile, col_mask, 0.0)
        else:
            left = tl.load(a_tile, row_mask & (ks < k - start)[None, :], 0.0)
            right = tl.load(b_tile, col_mask & (ks < k - start)[:, None], 0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
        a_tile += a_step
        b_tile += b_step
    return total
