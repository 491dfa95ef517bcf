"""The reference in the place of the backend "cuda", which notes what it is asked for and refuses what a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from muon_kernels import refusals
from muon_kernels.backends import cuda, reference

Asked = tuple[str, tuple[torch.dtype, ...]]


class Stub:
    """What was asked for before a step and within it, and whether it `refuses` an op on lists of some dtypes."""

    def __init__(self) -> None:
        self.refuses: Callable[..., bool] = lambda op, dtypes: False
        self.forget()

    def forget(self) -> None:
        self.before: set[Asked] = set()
        self.within: set[Asked] = set()
        refusals._select.cache_clear()

    def unavailable_reason(self, op, device, lists) -> str | None:
        if op == "gemm_add" or not lists:  # products run wherever chains of them do; without lists no dtype is refused
            return None
        asked = op, tuple(tensors[0].dtype for tensors in lists)
        (self.before if lists[0][0].is_meta else self.within).add(asked)
        return f"no such {op}" if self.refuses(*asked) else None


@contextmanager
def stub_backend() -> Iterator[Stub]:
    stub = Stub()
    try:
        with patch.multiple(cuda, OPS=reference.OPS, WHOLES={}, unavailable_reason=stub.unavailable_reason):
            yield stub
    finally:
        stub.forget()
