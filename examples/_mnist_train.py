"""The experiment: one small network, two optimizers, two starts, and what is recorded after every epoch."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from _mnist_glyph import glyph
from _mnist_read import Mnist
from torch import Tensor, nn

from muon_kernels import Muon
from muon_kernels.diagnostics import spectral_norm

OPTIMIZERS = ("adam", "muon")
STARTS = ("random", "shape")
WIDTHS = (784, 128, 128, 64, 10)
WATCHED = "2.weight"  # the 128x128 matrix
GLYPH_STRENGTH = 0.4
LEARNING_RATE = 1e-3
BATCH = 512
EVALUATION_BATCH = 8192


@dataclass(frozen=True)
class Split:
    """Flattened, normalised images and their labels, on the device that trains."""

    images: Tensor
    labels: Tensor


@dataclass
class History:
    """One value (or matrix) a recording: before training, then after each epoch; losses only per epoch."""

    train_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    spectral_norm: list[float] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    first_loss: list[float] = field(default_factory=list)
    seconds: float = 0.0


def prepare_splits(data: Mnist, device: torch.device, dtype: torch.dtype) -> tuple[Split, Split]:
    """Train and test split of `data`, each as two tensors, normalised once: an epoch is nothing but index shuffles."""
    mean, std = data.published.pixel_mean, data.published.pixel_std

    def prepare(images: np.ndarray, labels: np.ndarray) -> Split:
        pixels = torch.tensor(images, device=device).flatten(1).float().div_(255).sub_(mean).div_(std)
        return Split(pixels.to(dtype), torch.tensor(labels, device=device, dtype=torch.int64))

    return prepare(data.train_images, data.train_labels), prepare(data.test_images, data.test_labels)


def build_model(start: str, seed: int) -> nn.Sequential:
    """The fp32 network at its start; both starts and both optimizers of a seed share the same random weights."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for rows, columns in zip(WIDTHS[1:], WIDTHS[:-1], strict=True):
        layers += [nn.Linear(columns, rows), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    if start == "shape":
        with torch.no_grad():
            model.get_parameter(WATCHED).add_(torch.from_numpy(glyph()), alpha=GLYPH_STRENGTH)
    return model


def build_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """Adam for everything, or Muon for every matrix (first and last layer too) and Adam for the biases."""
    if name == "adam":
        return torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    if name != "muon":
        raise ValueError(f"unknown optimizer {name!r}: choose one of {', '.join(OPTIMIZERS)}")
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    # An auxiliary group runs AdamW: without weight decay and with these betas, it is torch's default Adam.
    groups = [{"params": matrices}, {"params": others, "use_muon": False, "betas": (0.9, 0.999)}]
    return Muon(groups, lr=LEARNING_RATE, weight_decay=0.0, adjust_lr_fn="max_dim")


def accuracy(model: nn.Module, split: Split) -> float:
    """Fraction of `split` that the model classifies correctly."""
    with torch.no_grad():
        guesses = torch.cat([model(images).argmax(1) for images in split.images.split(EVALUATION_BATCH)])
    return (guesses == split.labels).double().mean().item()


def record(history: History, model: nn.Module, train: Split, test: Split) -> None:
    """Append both accuracies, and the watched weight with its spectral norm, to `history`."""
    # `copy=True`: a weight that is fp32 on the CPU already would otherwise be kept by reference and go on training.
    weight = model.get_parameter(WATCHED).detach().to("cpu", torch.float32, copy=True)
    history.train_accuracy.append(accuracy(model, train))
    history.test_accuracy.append(accuracy(model, test))
    history.spectral_norm.append(spectral_norm(weight))
    history.weights.append(weight)


def train_model(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Split,
    test: Split,
    epochs: int,
    seed: int,
    on_batch: Callable[[], object] = lambda: None,
) -> History:
    """Train `model` in place; `seed` orders the batches, `on_batch` is called after each of them."""
    history = History()
    order = torch.Generator().manual_seed(seed)
    began = time.perf_counter()
    record(history, model, train, test)
    for _ in range(epochs):
        shuffled = torch.randperm(len(train.labels), generator=order).to(train.labels.device)
        for number, index in enumerate(shuffled.split(BATCH)):
            loss = nn.functional.cross_entropy(model(train.images[index]), train.labels[index])
            model.zero_grad()
            loss.backward()
            optimizer.step()
            if number == 0:
                history.first_loss.append(loss.item())
            on_batch()
        record(history, model, train, test)
    history.seconds = time.perf_counter() - began
    return history
