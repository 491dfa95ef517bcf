"""The op `chains` on the Hopper kernels of csrc/sm90: whole chains of products in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import extension
from .cuda_products import DTYPES
from .device import on_device


def chains(
    workspace: list[Tensor], *, buffers: list[int], products: list[int], scalars: list[float], chains: list[int]
) -> None:
    """See `muon_kernels.ops.chains`."""
    launch(workspace[0], buffers, products, scalars, chains)


def launch(
    workspace: Tensor,
    buffers: Sequence[int],
    products: Sequence[int],
    scalars: Sequence[float],
    chains: Sequence[int],
    *,
    tile: int = -1,
    band: int = 0,
) -> None:
    """Runs a program of `muon_kernels.program`.

    Args:
        tile: the tile shape, an index into csrc/sm90/shapes.cuh; -2 for a launch a product; -1 decides by the sizes.
        band: matrices that go through a chain side by side; 0 decides by the sizes.
    """
    items = _items(tuple(buffers), tuple(products), tuple(scalars), tuple(chains))
    device = workspace.device
    with on_device(device):
        done = torch.empty(items.matrices, dtype=torch.int32, device=device)
        stream = torch.cuda.current_stream(device).cuda_stream
        extension.load().chains(
            items, DTYPES[workspace.dtype], workspace.data_ptr(), done.data_ptr(), tile, band, stream
        )


@lru_cache(maxsize=256)
def _items(*lists: tuple[float, ...]) -> Any:
    """The program as a C++ object."""
    return extension.load().Chains(*lists)
