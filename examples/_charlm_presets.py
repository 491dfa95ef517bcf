"""The sizes that charlm is run in."""

from dataclasses import dataclass

from _charlm_model import Shape


@dataclass(frozen=True)
class Preset:
    """The model, its training and how it is watched; the last is what runs unless the command line says otherwise."""

    shape: Shape
    batch: int  # windows of `shape.context` bytes a step
    steps: int
    evaluations: int  # during training; one more before it
    validation_windows: int
    lr: dict[str, list[float]]  # by optimizer; several are a sweep


# The best of a sweep with the tiny preset, docs/charlm.md. torch.optim.Muon is the same algorithm as ours.
LEARNING_RATES = {"muon": [4e-3], "adamw": [4e-3], "torch-muon": [4e-3]}

PRESETS = {
    "tiny": Preset(Shape(4, 128, 4, 64), 16, 300, 10, 256, LEARNING_RATES),
    "small": Preset(Shape(6, 384, 6, 256), 64, 1000, 20, 512, LEARNING_RATES),
}
