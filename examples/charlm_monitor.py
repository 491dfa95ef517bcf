"""What a SpectrumMonitor costs while charlm trains: recorded steps against plain ones, in turns.

Prints the overhead and writes `results.json`. See docs/diagnostics.md.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import torch
from _charlm_batches import Batches
from _charlm_clock import Clock
from _charlm_optimizers import Method, build_optimizers
from _charlm_presets import LEARNING_RATES, PRESETS
from _charlm_text import load_text
from _charlm_train import build_model, train_step
from _command import command_line, device_name, positive, versions
from _data import DataError
from tqdm import tqdm

from muon_kernels.diagnostics import JsonLines, SpectrumMonitor
from muon_kernels.diagnostics.spectrum import METHODS

WARM_UP = 4


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument(
        "--every", type=positive, default=100, help="what the cost is spread over (default %(default)s)"
    )
    parser.add_argument("--pairs", type=positive, default=30, help="steps of each kind (default %(default)s)")
    parser.add_argument("--method", choices=METHODS, help="default: the monitor's own")
    parser.add_argument("--data", type=Path, metavar="FILE", help="any text, plain or .gz (default: Shakespeare)")
    parser.add_argument("--out", type=Path, default=Path("results/local/charlm_monitor"), metavar="DIR")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    options = parser.parse_args(arguments)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        plain, recorded = measure(options, device)
    except DataError as error:
        raise SystemExit(f"error: {error}") from error
    step, extra = statistics.median(plain), statistics.median(recorded) - statistics.median(plain)
    found = {
        "command": command_line("charlm_monitor", arguments),
        "device": device_name(device),
        "versions": versions(),
        "step_seconds": step,
        "record_seconds": extra,
        "every": options.every,
        "overhead": extra / (options.every * step),
        "plain": plain,
        "recorded": recorded,
    }
    (options.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    print(
        f"{1e3 * step:.1f} ms a step, {1e3 * extra:.1f} ms a record: {found['overhead']:.2%} at every={options.every}"
    )


def measure(options: argparse.Namespace, device: torch.device) -> tuple[list[float], list[float]]:
    """Seconds of plain steps and of recorded ones, in turns, after a few that do not count."""
    steps = 2 * options.pairs + WARM_UP
    preset = replace(PRESETS[options.preset], steps=steps)
    batches = Batches(load_text(options.data), preset, 0, device)
    model = build_model(preset.shape, 0).to(device)
    optimizers = build_optimizers(Method("muon", None, LEARNING_RATES["muon"][0]), model)
    writer = JsonLines(options.out / "spectra.jsonl")
    SpectrumMonitor(optimizers[0], every=2, writer=writer, method=options.method)
    seconds: list[float] = []
    for step in tqdm(range(steps), desc="steps", unit="step"):
        clock = Clock(device)
        clock.mark()
        train_step(model, optimizers, batches.training(step), clock)
        seconds.append(clock.read()[0])
    return seconds[WARM_UP::2], seconds[WARM_UP + 1 :: 2]


if __name__ == "__main__":
    main()
