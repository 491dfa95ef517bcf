"""Which bytes a step and an evaluation see: decided before training, by the seed alone."""

import torch
from _charlm_presets import Preset
from _charlm_text import Text
from _data import DataError
from torch import Tensor


class Batches:
    """Windows of `context` bytes and the byte after them, int64 [windows, context + 1], on the device that trains.

    A step's windows begin anywhere in the training part; those of an evaluation lie evenly over the validation part.
    """

    def __init__(self, text: Text, preset: Preset, seed: int, device: torch.device) -> None:
        self._length = preset.shape.context + 1
        shortest = min(len(text.train), len(text.validation))
        if shortest < self._length:
            raise DataError(f"{text.source}: {shortest} bytes are too few for windows of {self._length}")
        self._train, self._validation = (torch.tensor(part, device=device) for part in (text.train, text.validation))
        order = torch.Generator().manual_seed(seed)
        starts = torch.randint(len(text.train) - self._length + 1, (preset.steps, preset.batch), generator=order)
        self._starts = starts.to(device)
        last = len(text.validation) - self._length
        evenly = torch.linspace(0, last, preset.validation_windows, dtype=torch.float64)
        self._validation_starts = evenly.long().to(device)
        self._batch = preset.batch

    def training(self, step: int) -> Tensor:
        """The batch of a step."""
        return self._windows(self._train, self._starts[step])

    def validation(self) -> list[Tensor]:
        """Every window of an evaluation, in batches of the training's size."""
        return [self._windows(self._validation, starts) for starts in self._validation_starts.split(self._batch)]

    def _windows(self, content: Tensor, starts: Tensor) -> Tensor:
        return content[starts[:, None] + torch.arange(self._length, device=content.device)].long()
