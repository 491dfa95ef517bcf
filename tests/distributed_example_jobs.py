"""The training example, on the ranks of a pool."""

from __future__ import annotations

import sys
from pathlib import Path

EXAMPLES = str(Path(__file__).parents[1] / "examples")


def run_example(arguments: list[str]) -> list[float]:
    """The losses of `fsdp2_train.py` with a tiny model."""
    if EXAMPLES not in sys.path:
        sys.path.insert(0, EXAMPLES)
    import fsdp2_train

    tiny = ["--batch", "8", "--context", "16", "--layers", "1", "--width", "32", "--text", __file__]
    return fsdp2_train.train(fsdp2_train.parse([*tiny, *arguments]))
