"""Train a small convolutional network on MNIST with AdamW and with Muon, whose convolutions are flattened or batched.

Flattened, [out, in, height, width] is one matrix [out, in * height * width]; batched, it is one [out, in] per position.
Batch normalisation, biases and the output layer go to the auxiliary AdamW. Seconds on a CPU.
"""

import argparse
import itertools
from collections.abc import Callable

import torch
from _command import mean_text, positive
from _mnist_data import add_data_options, load_images
from _mnist_train import Split, accuracy, prepare_splits
from torch import nn

from muon_kernels import Muon, param_groups_for

BATCH = 128
WIDTHS = (1, 16, 32, 64)


def build_model(seed: int) -> nn.Sequential:
    """Three convolutions that halve the image, each with batch normalisation, and a linear head."""
    torch.manual_seed(seed)
    model = nn.Sequential()
    model.add_module("image", nn.Unflatten(1, (1, 28, 28)))
    for i, (inputs, outputs) in enumerate(itertools.pairwise(WIDTHS)):
        model.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False))
        model.add_module(f"norm{i}", nn.BatchNorm2d(outputs))
        model.add_module(f"relu{i}", nn.ReLU())
    model.add_module("flat", nn.Flatten())
    model.add_module("head", nn.Linear(4 * 4 * WIDTHS[-1], 10))
    return model


def muon(model: nn.Module, layout: str) -> Muon:
    """Muon for the convolutions in that layout, its AdamW for the rest."""
    groups = param_groups_for(model, layout={"conv*.weight": layout}, muon={"lr": 0.02}, auxiliary={"lr": 3e-3})
    return Muon(groups, weight_decay=0.01)


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01),
    "Muon, flatten": lambda model: muon(model, "flatten"),
    "Muon, conv_batched": lambda model: muon(model, "conv_batched"),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Split, epochs: int, seed: int) -> None:
    """Trains in place, with a learning rate that falls to a tenth of itself; `seed` orders the batches."""
    order = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(data.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(data.labels), generator=order).split(BATCH):
            loss = nn.functional.cross_entropy(model(data.images[index]), data.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def main(arguments: list[str] | None = None) -> dict[str, list[float]]:
    """The command; returns the test accuracy of every optimizer and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=positive, default=1)
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="run seeds 0 to N-1 (default 1)")
    parser.add_argument("--images", type=positive, default=10_000, help="train on the first so many (default 10000)")
    add_data_options(parser)
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)  # as in mnist.py: these layers are too small to share
    data = load_images(options)
    whole, test = prepare_splits(data, torch.device("cpu"), torch.float32)
    images = Split(whole.images[: options.images], whole.labels[: options.images])
    print(f"data: {data.source}, {len(images.labels)} train + {len(test.labels)} test images")
    print(muon(build_model(0), "conv_batched").explain())
    results: dict[str, list[float]] = {}
    for name, optimizer_of in OPTIMIZERS.items():
        results[name] = []
        for seed in range(options.seeds):
            model = build_model(seed)
            train(model, optimizer_of(model), images, options.epochs, seed)
            results[name].append(100 * accuracy(model, test))
        print(f"{name:20s} test accuracy {mean_text(results[name], 2)} %")
    return results


if __name__ == "__main__":
    main()
