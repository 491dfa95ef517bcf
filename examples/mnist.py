"""Train a small network on MNIST or Fashion-MNIST with Muon and Adam, from a random start and from a planted shape.

Prints the accuracies after every epoch and writes `results.json` and one figure per start. See docs/mnist.md.
"""

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path

import torch
from _command import command_line, mean_text, positive, versions
from _mnist_data import add_data_options, load_images
from _mnist_figure import draw
from _mnist_read import Mnist, idx_md5
from _mnist_runs import load_run, save_run
from _mnist_train import (
    BATCH,
    OPTIMIZERS,
    STARTS,
    History,
    build_model,
    build_optimizer,
    prepare_splits,
    train_model,
)
from tqdm import tqdm

import muon_kernels

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Results = dict[str, dict[str, list[History]]]  # start -> optimizer -> one history a seed


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parse(arguments)
    # The layers are too small to share: on two cores with other work, a second thread made epochs ten times slower.
    torch.set_num_threads(1)
    data = load_images(options)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    print(f"muon_kernels {muon_kernels.__version__}, torch {torch.__version__}")
    print(muon_kernels.explain())
    print(f"data: {data.source}, {len(data.train_labels)} train + {len(data.test_labels)} test images")
    print(f"training on {device}, {options.dtype}: {options.epochs} epochs of batches of {BATCH}")

    results = run(options, data, device)
    print(table(results))
    save(results, options, data, command_line("mnist", arguments))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=positive, default=10)
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="run seeds 0 to N-1 (default 1)")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of weights, optimizer states and inputs")
    parser.add_argument("--start", choices=(*STARTS, "both"), default="both")
    add_data_options(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default results/local/DATASET")
    parser.add_argument("--resume", action="store_true", help="keep the finished runs with these settings in --out")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    options = parser.parse_args(arguments)
    options.out = options.out or Path("results/local") / options.dataset
    return options


def run(options: argparse.Namespace, data: Mnist, device: torch.device) -> Results:
    """Every start, optimizer and seed that was asked for."""
    train, test = prepare_splits(data, device, DTYPES[options.dtype])
    starts = STARTS if options.start == "both" else (options.start,)
    results: Results = {start: {name: [] for name in OPTIMIZERS} for start in starts}
    batches = options.epochs * -(-len(train.labels) // BATCH)
    settings = {"epochs": options.epochs, "dtype": options.dtype, "images": idx_md5(data.train_images)}
    for start in starts:
        for name in OPTIMIZERS:
            for seed in range(options.seeds):
                path = options.out / "runs" / f"{start}-{name}-seed{seed}.pt"
                history = load_run(path, settings) if options.resume else None
                if history is None:
                    model = build_model(start, seed).to(device, DTYPES[options.dtype])
                    optimizer = build_optimizer(name, model)
                    with tqdm(total=batches, desc=f"{name} {start}, seed {seed}", unit="batch") as bar:
                        history = train_model(model, optimizer, train, test, options.epochs, seed, bar.update)
                    save_run(path, settings, history)
                results[start][name].append(history)
    return results


def table(results: Results) -> str:
    """Train / test accuracy after every epoch in percent: the mean, and ± the standard deviation of several seeds."""
    columns = {f"{name.capitalize()} {start}": runs for start, by in results.items() for name, runs in by.items()}
    seeds, epochs = next((len(runs), len(runs[0].test_accuracy)) for runs in columns.values())
    width = 26 if seeds > 1 else 15

    def line(label: str, cells: Iterable[str]) -> str:
        return f"{label:8s}" + "".join(f"{cell:>{width}}" for cell in cells)

    lines = [f"\ntrain / test accuracy in percent, number of seeds: {seeds}", line("epoch", columns)]
    for epoch in range(epochs):
        train = ([run.train_accuracy[epoch] for run in runs] for runs in columns.values())
        test = ([run.test_accuracy[epoch] for run in runs] for runs in columns.values())
        lines.append(line(str(epoch), (f"{_percent(a)} / {_percent(b)}" for a, b in zip(train, test, strict=True))))
    lines.append("spectral norm of the 128x128 weight")
    for label, epoch in (("first", 0), ("last", -1)):
        norms = (statistics.mean(run.spectral_norm[epoch] for run in runs) for runs in columns.values())
        lines.append(line(label, (f"{norm:.2f}" for norm in norms)))
    return "\n".join(lines)


def save(results: Results, options: argparse.Namespace, data: Mnist, command: str) -> None:
    """Write the numbers, with the command that made them, as JSON and a figure for each start."""
    settings = {"epochs": options.epochs, "seeds": options.seeds, "dtype": options.dtype, "data": data.source}
    about = {"command": command, "settings": settings, "versions": versions()}
    runs = {
        start: {name: [_numbers(history) for history in histories] for name, histories in names.items()}
        for start, names in results.items()
    }
    path = options.out / "results.json"
    path.write_text(json.dumps({**about, "runs": runs}, indent=1) + "\n")
    written = [path]
    for start, names in results.items():
        written.append(options.out / f"weights_{start}.png")
        rows = {name.capitalize(): histories for name, histories in names.items()}
        draw(rows, data.published.name, start, written[-1])
    print("\nwritten: " + ", ".join(map(str, written)))


def _numbers(history: History) -> dict[str, object]:
    return {key: value for key, value in vars(history).items() if key != "weights"}


def _percent(values: list[float]) -> str:
    return mean_text([100 * value for value in values], 2)


if __name__ == "__main__":
    main()
