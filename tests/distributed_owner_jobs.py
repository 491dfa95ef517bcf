"""What the ranks of a pool run to see how owners read what arrives and what becomes of their results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from distributed_jobs import SHAPES, Lies, Pair, equals_one_process, full_tensors
from torch import Tensor

from muon_kernels.distributed import inputs, results, views
from muon_kernels.distributed import step as distributed_step

EVEN = [(64, 64), (64, 128), (128, 64), (64, 64), (64, 128), (64, 64)]


@contextmanager
def counted_products() -> Iterator[dict[str, int]]:
    """Small pieces count as large ones. Yields how many lists of results products wrote, and how many parameters (or
    pieces of them) they stepped."""
    counts = {"written": 0, "stepped": 0}
    multiply, multiply_and_apply = distributed_step.multiply, distributed_step.multiply_and_apply

    def write(left: Any, right: Any, into: Any) -> None:
        counts["written"] += len(into)
        multiply(left, right, into)

    def step(left: Any, right: Any, into: Any, params: list[Tensor], **options: Any) -> None:
        counts["stepped"] += len(params)
        multiply_and_apply(left, right, into, params, **options)

    with (
        patch.object(results, "MINIMUM_SIDE", 8),
        patch.object(views, "LARGE_PIECE", 2048),
        patch.multiple(distributed_step, multiply=write, multiply_and_apply=step),
    ):
        yield counts


def by_products(lies: Lies, shapes: list[tuple[int, ...]] = EVEN, **options: Any) -> tuple[int, int]:
    """Compares with one process; returns what products wrote and stepped in three steps."""
    with counted_products() as counts:
        equals_one_process(lies, shapes, {"compute_dtype": torch.float16} | options, steps=3)
    return counts["written"], counts["stepped"]


def by_products_if_at_all(lies: Lies) -> list[int]:
    """How many parameters products stepped, in steps that lack gradients or that a GradScaler skips."""
    pair, found = Pair(lies, EVEN, compute_dtype=torch.float16), []
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0) for _ in range(2)]
    for step, without in enumerate([(), (0, 3), (1,), ()]):
        grads = full_tensors(EVEN, 100 + step)
        if step == 2:
            grads[2][-1, -1] = torch.inf
        for i, grad in enumerate(grads):
            pair.alone[i].grad = None if i in without else grad.clone()
            pair.shared[i].grad = None if i in without else pair.lies.put(grad, pair.mesh)
        with counted_products() as counts:
            for scaler, optimizer in zip(scalers, (pair.one, pair.many), strict=True):
                scaler.scale(torch.tensor(1.0))
                scaler.step(optimizer)
                scaler.update()
        found.append(counts["stepped"])
        pair.compare()
    return found


def from_pieces(lies: Lies, options: dict[str, Any]) -> int:
    """Compares with one process where every matrix is read from its pieces; returns how many pieces were read so.

    The sums of squares differ in the last bits of a float64, which no product sees in less than float64."""
    read = []

    def reads_pieces(chain: Any, pieces: list[Tensor]) -> bool:
        read.append(len(pieces))
        return True

    with patch.object(inputs, "reads_pieces", reads_pieces):
        equals_one_process(lies, SHAPES, options, steps=2)
    return sum(read)
