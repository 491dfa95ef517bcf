"""Finished runs in a folder, so that a command that was interrupted does not train them again."""

import os
from pathlib import Path
from typing import Any

import torch
from _mnist_train import History


def load_run(path: Path, settings: dict[str, Any]) -> History | None:
    """The run that `save_run` stored; None if there is none with these settings."""
    if not path.exists():
        return None
    stored = torch.load(path, weights_only=True)
    return History(**stored["history"]) if stored["settings"] == settings else None


def save_run(path: Path, settings: dict[str, Any], history: History) -> None:
    """Store a run so that no interruption leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save({"settings": settings, "history": vars(history)}, part)
    os.replace(part, path)
