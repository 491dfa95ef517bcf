"""The text that the training on several processes learns, and the windows of it that a step sees."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from torch import Tensor


def read_text(path: Path | None) -> Tensor:
    """The bytes of a file; by default those of Python's own library, which is on every machine that runs this."""
    files = [path] if path else sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8)


def windows(text: Tensor, step: int, batch: int, context: int) -> Tensor:
    """The step's [batch, context + 1] bytes, int64: the same whatever the number of ranks."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(text) - context, (batch,), generator=generator)
    return torch.stack([text[i : i + context + 1] for i in starts.tolist()]).long()
