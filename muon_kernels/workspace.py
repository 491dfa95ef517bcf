"""Scratch memory: which matrices run together, and where their 16-bit copies lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

ALIGNMENT = 16
"""Bytes. Rows and matrices start on this boundary, as Hopper's tensor memory accelerator demands."""


@dataclass(frozen=True)
class Wave:
    """Matrices that are in scratch memory at the same time.

    order: indices of the matrices in the caller's list; equal shapes are neighbours.
    groups: (count, rows, cols) of each run of equal shapes in `order`.
    """

    order: tuple[int, ...]
    groups: tuple[tuple[int, int, int], ...]


@lru_cache(maxsize=256)
def plan_waves(shapes: tuple[tuple[int, int], ...], needs: tuple[int, ...], max_bytes: int) -> tuple[Wave, ...]:
    """Cuts a list of matrices into waves whose scratch memory stays within `max_bytes`.

    Matrices are taken by falling size, so that equal shapes meet and no wave mixes very different costs. A matrix that
    alone needs more than `max_bytes` gets a wave of its own. A function of its arguments only: the same list gives the
    same waves on every machine.

    Args:
        shapes: rows and columns of every matrix.
        needs: bytes of scratch memory of every matrix.
    """
    by_size = sorted(range(len(shapes)), key=lambda i: (-shapes[i][0] * shapes[i][1], shapes[i], i))
    waves: list[list[int]] = []
    used = 0
    for i in by_size:
        if not waves or used + needs[i] > max_bytes:
            waves.append([])
            used = 0
        waves[-1].append(i)
        used += needs[i]
    return tuple(Wave(tuple(order), _runs([shapes[i] for i in order])) for order in waves)


def empty_batch(count: int, rows: int, cols: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised [count, rows, cols] whose rows start on ALIGNMENT-byte boundaries; padding is never read."""
    storage = torch.empty((count, rows, padded(cols, dtype.itemsize)), dtype=dtype, device=device)
    return storage[:, :, :cols]


def pack(
    shapes: Sequence[torch.Size], unit: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, list[Tensor]]:
    """Zeros [units, unit], and `unpack` of them."""
    flat = torch.zeros((sum(-(-s.numel() // unit) for s in shapes), unit), dtype=dtype, device=device)
    return flat, unpack(flat, shapes)


def unpack(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """A contiguous view of [units, unit] for each of the shapes, in their order, each from where a unit starts."""
    parts = flat.split([-(-s.numel() // flat.shape[1]) for s in shapes])
    return [part.view(-1)[: s.numel()].view(s) for part, s in zip(parts, shapes, strict=True)]


def padded(cols: int, element_size: int) -> int:
    """Elements from one row of `cols` elements to the next, so that every row starts on ALIGNMENT bytes."""
    step = ALIGNMENT // element_size
    return -(-cols // step) * step


def _runs(shapes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int, int], ...]:
    runs: list[tuple[int, int, int]] = []
    for rows, cols in shapes:
        if runs and runs[-1][1:] == (rows, cols):
            runs[-1] = (runs[-1][0] + 1, rows, cols)
        else:
            runs.append((1, rows, cols))
    return tuple(runs)
