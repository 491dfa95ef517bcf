"""Where a run stands, in a file: what goes on from it ends with the same bits as a run that was never interrupted."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

Settings = dict[str, Any]


class CheckpointError(RuntimeError):
    """The file belongs to another run."""


def save_checkpoint(
    path: Path, settings: Settings, model: nn.Module, optimizers: list[torch.optim.Optimizer], curve: dict[str, Any]
) -> None:
    """Replace `path` at once, so that an interruption leaves the old checkpoint or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    states = [optimizer.state_dict() for optimizer in optimizers]
    whole = path.with_suffix(".new")
    torch.save({"settings": settings, "model": model.state_dict(), "optimizers": states, "curve": curve}, whole)
    os.replace(whole, path)


def load_checkpoint(
    path: Path, settings: Settings, model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> dict[str, Any]:
    """Put `model` and `optimizers` in the saved state and return the saved curve.

    Raises:
        CheckpointError: the file was saved with other settings; nothing has been changed.
    """
    saved = torch.load(path, map_location="cpu", weights_only=True)
    other = {key: (saved["settings"].get(key), value) for key, value in settings.items()}
    differences = [f"{key} {was!r} there, {now!r} here" for key, (was, now) in other.items() if was != now]
    if differences:
        raise CheckpointError(f"{path} holds another run ({'; '.join(differences)}): train without --resume")
    model.load_state_dict(saved["model"])
    for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return saved["curve"]
