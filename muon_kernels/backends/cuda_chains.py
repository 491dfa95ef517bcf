"""The op `chains` on the Hopper kernels of csrc/sm90: whole chains of products in one call."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor

from .. import extension
from .cuda_products import DTYPES
from .device import current_stream, on_device


def chains(
    workspace: list[Tensor], *, buffers: list[int], products: list[int], scalars: list[float], chains: list[int]
) -> None:
    """See `muon_kernels.ops.chains`. Products of several chains that can run side by side share a launch."""
    items = _items(tuple(buffers), tuple(products), tuple(scalars), tuple(chains))
    device = workspace[0].device
    with on_device(device):
        items.launch(DTYPES[workspace[0].dtype], workspace[0].data_ptr(), current_stream(device))


@lru_cache(maxsize=256)
def _items(*lists: tuple[float, ...]) -> Any:
    """The program as a C++ object."""
    return extension.load().Chains(*lists)
