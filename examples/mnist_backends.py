"""Train the network of mnist.py with Muon on several backends, and lay the training losses over each other.

Prints the final losses and test accuracies and writes `results.json` and `loss.png`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from _command import command_line, positive, versions
from _mnist_data import add_data_options, load_images
from _mnist_train import BATCH, Split, accuracy, build_model, build_optimizer, prepare_splits
from matplotlib.figure import Figure
from torch import nn

from muon_kernels import use_backend
from muon_kernels.diagnostics.figures import CYCLE, draw_curves, save

WINDOW = 20
"""Steps whose mean is one point of a curve."""


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", nargs="+", default=["triton", "reference"])
    parser.add_argument("--epochs", type=positive, default=10)
    add_data_options(parser)
    parser.add_argument("--out", type=Path, default=Path("results/local/mnist_backends"), metavar="DIR")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    options = parser.parse_args(arguments)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    data = load_images(options)
    train, test = prepare_splits(data, device, torch.float32)
    runs = {}
    for backend in options.backend:
        with use_backend(backend):
            losses, share = train_model(train, test, options.epochs)
        runs[backend] = {"loss": losses, "test_accuracy": share}
        print(f"{backend:12} loss of the last {WINDOW} steps {losses[-1]:.4f}, test accuracy {share:.2%}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    command = command_line("mnist_backends", arguments)
    about = {
        "command": command,
        "epochs": options.epochs,
        "window": WINDOW,
        "device": where,
        "versions": versions(),
        "runs": runs,
    }
    (options.out / "results.json").write_text(json.dumps(about, indent=1) + "\n")
    draw(
        {name: run["loss"] for name, run in runs.items()},
        f"{data.published.name}, Muon, on {where}",
        options.out / "loss.png",
    )


def train_model(train: Split, test: Split, epochs: int) -> tuple[list[float], float]:
    """Means of WINDOW losses in turn, and the test accuracy at the end; seed 0 for weights and batches."""
    model = build_model("random", 0).to(train.images.device)
    optimizer = build_optimizer("muon", model)
    order = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(epochs):
        for index in torch.randperm(len(train.labels), generator=order).to(train.labels.device).split(BATCH):
            loss = nn.functional.cross_entropy(model(train.images[index]), train.labels[index])
            model.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    steps = torch.stack(losses[: len(losses) // WINDOW * WINDOW])
    return steps.view(-1, WINDOW).mean(1).tolist(), accuracy(model, test)


def draw(runs: dict[str, list[float]], title: str, path: Path) -> None:
    """One curve a backend."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for style, (name, losses) in zip(CYCLE, runs.items(), strict=False):
        curve = np.array(losses)
        draw_curves(axes, WINDOW * np.arange(1, len(curve) + 1), {name: (curve, 0 * curve)}, {name: style})
    axes.set(title=title, xlabel="Step", ylabel="Training loss", yscale="log")
    axes.legend()
    save(figure, path, dpi=100)


if __name__ == "__main__":
    main()
