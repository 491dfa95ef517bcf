"""A training run: its steps, its schedule, and what is recorded at its evaluations."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from _charlm_batches import Batches
from _charlm_checkpoint import load_checkpoint, save_checkpoint
from _charlm_clock import Clock
from _charlm_optimizers import Method, build_optimizers, state_bytes
from _charlm_presets import Preset
from _charlm_text import Text
from _gpt import Gpt, Shape
from torch import Tensor

from muon_kernels import use_backend

UNTIMED_STEPS = 2
WARM_UP_SHARE = 0.1

Optimizers = list[torch.optim.Optimizer]


@dataclass
class Curve:
    """One value an evaluation, the first before training (but for `train_loss`, the mean since the evaluation before).

    Losses are in nats per byte; seconds are those of training alone, and those of them in the optimizer;
    `state_bytes` is one number, what the optimizer keeps for a parameter.
    """

    step: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    optimizer_seconds: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    state_bytes: float = 0.0

    def record(self, step: int, tokens: int, seconds: tuple[float, float], validation_loss: float) -> None:
        """Append an evaluation; `seconds` are those since the one before, all of them and the optimizer's."""
        self.step.append(step)
        self.tokens.append(tokens)
        for total, new in zip((self.seconds, self.optimizer_seconds), seconds, strict=True):
            total.append((total[-1] if total else 0.0) + new)
        self.validation_loss.append(validation_loss)


def train_model(
    method: Method,
    seed: int,
    preset: Preset,
    text: Text,
    device: torch.device,
    checkpoint: Path,
    *,
    resume: bool = False,
    on_steps: Callable[[int, float], object] = lambda count, validation_loss: None,
) -> tuple[Gpt, Curve]:
    """Train a new model, or go on from `checkpoint` if it exists and `resume` is set; it is written at each evaluation.

    `on_steps` gets the number of steps since its last call and the latest validation loss.
    """
    batches = Batches(text, preset, seed, device)
    settings = {**asdict(method), "seed": seed, **asdict(preset), "text": text.sha256}
    with use_backend(method.backend or "auto"):
        _warm_up(method, preset.shape, batches, device)
        model = build_model(preset.shape, seed, method.dtype).to(device)
        optimizers = build_optimizers(method, model)
        if resume and checkpoint.exists():
            curve = Curve(**load_checkpoint(checkpoint, settings, model, optimizers))
            on_steps(curve.step[-1], curve.validation_loss[-1])
        else:
            curve = Curve()
            curve.record(0, 0, (0.0, 0.0), validation_loss(model, batches))
        clock = Clock(device)
        for end in evaluation_steps(preset):
            if end <= curve.step[-1]:
                continue
            losses = []
            clock.mark()
            for step in range(curve.step[-1], end):
                set_rate(optimizers, method.lr * rate_factor(step, preset.steps))
                losses.append(train_step(model, optimizers, batches.training(step), clock))
                on_steps(1, curve.validation_loss[-1])
            seconds = clock.read()
            curve.train_loss.append(torch.stack(losses).mean().item())
            curve.state_bytes = state_bytes(optimizers, model)
            tokens = end * preset.batch * preset.shape.context
            curve.record(end, tokens, seconds, validation_loss(model, batches))
            on_steps(0, curve.validation_loss[-1])
            save_checkpoint(checkpoint, settings, model, optimizers, vars(curve))
    return model, curve


def build_model(shape: Shape, seed: int, dtype: torch.dtype = torch.float32) -> Gpt:
    """The model at its start: the same weights for every optimizer, rounded to `dtype`."""
    torch.manual_seed(seed)
    model = Gpt(shape)
    for p in model.parameters():  # not what the model keeps besides: its rotations stay exact
        p.data = p.data.to(dtype)
    return model


def train_step(model: Gpt, optimizers: Optimizers, windows: Tensor, clock: Clock) -> Tensor:
    """One step; returns the loss of its batch, still on the device."""
    with _precision(windows.device):
        loss = model.loss(windows)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    clock.mark()
    for optimizer in optimizers:
        optimizer.step()
    clock.mark()
    return loss.detach()


@torch.no_grad()
def validation_loss(model: Gpt, batches: Batches) -> float:
    """Mean over all bytes of the validation windows, in nats per byte."""
    total, count = 0.0, 0
    for windows in batches.validation():
        with _precision(windows.device):
            total += len(windows) * model.loss(windows).item()
        count += len(windows)
    return total / count


def evaluation_steps(preset: Preset) -> list[int]:
    """After how many steps the model is evaluated: evenly, and at the end."""
    return sorted({-(-preset.steps * i // preset.evaluations) for i in range(1, preset.evaluations + 1)})


def rate_factor(step: int, steps: int) -> float:
    """What the learning rate is multiplied by: a short linear rise, then a linear fall, to zero after `steps`."""
    rise = max(1, round(WARM_UP_SHARE * steps))
    return min((step + 1) / rise, (steps - step) / (steps - rise + 1))


def set_rate(optimizers: Optimizers, lr: float) -> None:
    """The same learning rate for every group."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def _precision(device: torch.device) -> torch.autocast:
    """bfloat16 products on a GPU, also of float32 weights."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _warm_up(method: Method, shape: Shape, batches: Batches, device: torch.device) -> None:
    """Steps of a model that is thrown away: what is compiled or loaded at first use stays out of the timed seconds."""
    model = build_model(shape, 0, method.dtype).to(device)
    optimizers, clock = build_optimizers(method, model), Clock(device)
    for _ in range(UNTIMED_STEPS):
        train_step(model, optimizers, batches.training(0), clock)
