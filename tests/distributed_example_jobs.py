"""The training example, on the ranks of a pool."""

from __future__ import annotations

import fsdp2_train


def run_example(arguments: list[str]) -> list[float]:
    """The losses of `fsdp2_train.py` with a tiny model."""
    tiny = ["--batch", "8", "--context", "16", "--layers", "1", "--width", "32", "--text", __file__]
    return fsdp2_train.train(fsdp2_train.parse([*tiny, *arguments]))
