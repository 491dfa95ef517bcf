"""What one optimizer step launches: every kernel in order with its time, the sums by kernel, and the host's time.

python -m bench.profile_step gpt2 bfloat16
python -m bench.profile_step llama1b bfloat16 --launches 60
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections import defaultdict

import torch
from torch.profiler import ProfilerActivity, profile

from muon_kernels import Muon

from .cells import MODELS


def parameters(model: str, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Random parameters of `model` with random gradients."""
    params = [torch.nn.Parameter(torch.randn(*shape, device="cuda", dtype=dtype)) for shape in MODELS[model]]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def short(name: str) -> str:
    """A kernel's name and template arguments without namespaces and argument lists."""
    name = re.sub(r"\(anonymous namespace\)::|muon_kernels::(sm90::)?|^void |\((Major|bool|int)\)", "", name)
    return name.split("(")[0][:110]


def host_milliseconds(optimizer: Muon, steps: int = 20) -> float:
    """Median time until step() returns, with an idle device before each."""
    times = []
    for _ in range(steps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        optimizer.step()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--launches", type=int, default=40, help="how many to list one by one")
    arguments = parser.parse_args()
    optimizer = Muon(parameters(arguments.model, getattr(torch, arguments.dtype)))
    for _ in range(5):
        optimizer.step()
    print(f"host {host_milliseconds(optimizer):.3f} ms a step")
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        optimizer.step()
        torch.cuda.synchronize()
    kernels = sorted((e for e in trace.events() if e.device_time_total), key=lambda e: e.time_range.start)
    first, last = kernels[0].time_range.start, max(e.time_range.end for e in kernels)
    print(f"{len(kernels)} kernels, {(last - first) / 1e3:.3f} ms from the first to the last")
    for event in kernels[: arguments.launches]:
        print(f"{event.time_range.start - first:10.1f} us {event.device_time_total:9.1f} us  {short(event.name)}")
    sums: dict[str, list[float]] = defaultdict(list)
    for event in kernels:
        sums[short(event.name)].append(event.device_time_total)
    for name, times in sorted(sums.items(), key=lambda item: -sum(item[1])):
        print(f"{sum(times) / 1e3:9.3f} ms {len(times):4d} x  {name}")


if __name__ == "__main__":
    main()
