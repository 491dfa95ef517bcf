"""Train a small byte-level GPT with Muon, with AdamW and with torch.optim.Muon, and compare their validation losses.

With `--optimizer` also Muon with an 8-bit momentum and on bfloat16 weights, rounded in three ways.

Prints a table and writes `results.json`, `loss.png` and resumable checkpoints. See docs/charlm.md.
"""

import argparse
import math
import shlex
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _charlm_checkpoint import CheckpointError
from _charlm_figure import draw
from _charlm_optimizers import COMPARED, LABELS, MUON_OPTIONS, Method
from _charlm_presets import LEARNING_RATES, PRESETS, Preset
from _charlm_report import Results, best_rates, save, table
from _charlm_text import Text, load_text
from _charlm_train import build_model, train_model
from _command import positive, versions
from _data import DataError
from tqdm import tqdm

import muon_kernels


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parse(arguments)
    preset = PRESETS[options.preset]
    preset = replace(preset, steps=options.steps or preset.steps)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.index is not None:
        torch.cuda.set_device(device)
    # On two cores with other work a second thread is waited for: 400 steps of AdamW took 178 s instead of 28 s.
    torch.set_num_threads(1)
    try:
        text = load_text(options.data)
        about = describe(options, preset, text, device, sys.argv[1:] if arguments is None else arguments)
        print(f"muon_kernels {muon_kernels.__version__}, torch {torch.__version__}")
        print(muon_kernels.explain())
        print(f"data: {text.source}, {len(text.train)} bytes to train on + {len(text.validation)} to validate with")
        print(f"training {about['parameters']} parameters on {about['device']}, {about['precision']}: {preset}")
        results = run(options, preset, text, device)
    except (DataError, CheckpointError, muon_kernels.BackendUnavailable) as error:
        raise SystemExit(f"error: {error}") from error
    print(table(results))
    save(results, about, options.out / "results.json")
    title = f"{text.source}: GPT with {about['parameters'] / 1e6:.1f} M parameters on {about['device']}"
    draw(best_rates(results), f"{title}, number of seeds: {options.seeds}", options.out / "loss.png")
    print(f"\nwritten: {options.out / 'results.json'}, {options.out / 'loss.png'}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; `methods` is what it asks to compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="small is for a GPU (default tiny)")
    parser.add_argument(
        "--optimizer", type=_names, default=list(COMPARED), metavar="NAME[,NAME]", help=",".join(LABELS)
    )
    parser.add_argument(
        "--lr", type=_rates, nargs="+", default=[], metavar="NAME=LR[,LR]", help="several of an optimizer: a sweep"
    )
    parser.add_argument(
        "--backend",
        type=_backend,
        nargs="+",
        default=["auto"],
        help="of muon_kernels: auto, triton, reference, or cuda,reference",
    )
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="run seeds 0 to N-1 (default 1)")
    parser.add_argument("--steps", type=positive, help="default: the preset's")
    parser.add_argument("--data", type=Path, metavar="FILE", help="any text, plain or .gz (default: Shakespeare)")
    parser.add_argument("--out", type=Path, default=Path("results/local/charlm"), metavar="DIR")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in --out")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    options = parser.parse_args(arguments)
    rates = dict(options.lr)
    if len(rates) < len(options.lr):
        parser.error("argument --lr: an optimizer is named twice")
    if unused := set(rates) - set(options.optimizer):
        parser.error(f"argument --lr: {', '.join(sorted(unused))} is not in --optimizer {','.join(options.optimizer)}")
    rates = LEARNING_RATES | rates
    options.methods = [
        Method(name, backend, lr)
        for name in options.optimizer
        for backend in (options.backend if name in MUON_OPTIONS else [None])
        for lr in rates[name]
    ]
    return options


def run(options: argparse.Namespace, preset: Preset, text: Text, device: torch.device) -> Results:
    """Every method and seed that was asked for; the methods take turns, so that other load falls on all of them."""
    results: Results = {method: [] for method in options.methods}
    for seed in range(options.seeds):
        for method, curves in results.items():
            name = f"{method.optimizer}-{method.backend or 'torch'}-{method.lr:g}-seed{seed}"
            checkpoint = options.out / "checkpoints" / f"{name}.pt"
            with tqdm(total=preset.steps, desc=f"{method.label}, lr {method.lr:g}, seed {seed}", unit="step") as bar:
                show = partial(_show, bar)
                _, curve = train_model(
                    method, seed, preset, text, device, checkpoint, resume=options.resume, on_steps=show
                )
            curves.append(curve)
    return results


def describe(
    options: argparse.Namespace, preset: Preset, text: Text, device: torch.device, arguments: list[str]
) -> dict[str, Any]:
    """What all runs have in common, for the results file."""
    cuda = device.type == "cuda"
    return {
        "command": shlex.join(["python", "examples/charlm.py", *arguments]),
        "preset": options.preset,
        **asdict(preset),
        "parameters": sum(p.numel() for p in build_model(preset.shape, 0).parameters()),
        "seeds": options.seeds,
        "data": text.source,
        "data_sha256": text.sha256,
        "device": torch.cuda.get_device_name(device) if cuda else "CPU, one thread",
        "precision": "bf16 autocast" if cuda else "no autocast",
        "versions": versions(),
    }


def _show(bar: tqdm, count: int, validation_loss: float) -> None:
    bar.set_postfix({"nats/byte": f"{validation_loss:.4f}"}, refresh=False)
    bar.update(count)


def _names(text: str) -> list[str]:
    names = text.split(",")
    if len(set(names)) < len(names) or not set(names) <= set(LABELS):
        raise argparse.ArgumentTypeError(f"must be some of {','.join(LABELS)}, got {text!r}")
    return names


def _rates(text: str) -> tuple[str, list[float]]:
    name, _, values = text.partition("=")
    try:
        rates = [float(value) for value in values.split(",")]
    except ValueError:
        rates = []
    if name not in LABELS or not rates or not all(0.0 < rate < math.inf for rate in rates):
        raise argparse.ArgumentTypeError(f"must be an optimizer and positive rates, muon=0.01,0.02, got {text!r}")
    return name, rates


def _backend(text: str) -> str:
    try:
        with muon_kernels.use_backend(text):
            return text
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    main()
