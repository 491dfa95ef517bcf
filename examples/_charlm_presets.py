"""The sizes that charlm is run in, and the learning rates that were found with the tiny one."""

from dataclasses import dataclass

from _charlm_optimizers import MUON_OPTIONS
from _gpt import Shape

# The best of a sweep with the tiny preset, docs/charlm.md. torch.optim.Muon is the same algorithm as ours.
LEARNING_RATES = {"adamw": [4e-3], "torch-muon": [1.6e-2], **{name: [1.6e-2] for name in MUON_OPTIONS}}


@dataclass(frozen=True)
class Preset:
    """The model, its training, and how often and on how much it is validated."""

    shape: Shape
    batch: int  # windows of `shape.context` bytes a step
    steps: int
    evaluations: int  # during training; one more before it
    validation_windows: int


PRESETS = {
    "tiny": Preset(Shape(4, 128, 4, 64), 16, 300, 10, 256),
    "small": Preset(Shape(6, 384, 6, 256), 64, 1000, 20, 512),
}
