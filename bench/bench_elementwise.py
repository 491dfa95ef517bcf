"""Bandwidth of the CUDA prologue and apply beside a device copy, in one run: python bench/bench_elementwise.py OUT.json

Every number is the median over CUDA-event pairs around one call. Inputs are random and rotate through sets that exceed
twice the L2 cache, so each call finds its data in device memory. Bytes are those that the op must move. "graph" replays
the captured call, "eager" enqueues it behind a wait that hides the host. Results are checked against the reference op
first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muon_kernels import ops, use_backend

MIB = 1 << 20
WAIT_CYCLES = 20_000_000  # some 12 ms: longer than the host needs to enqueue a call on 1000 tensors
PARAMETER_SETS = ("one tensor", "1000 tensors", "gpt2")
PROLOGUE_DTYPES = ((torch.float32, torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16, torch.bfloat16))
APPLY_DTYPES = (
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
)

Call = Callable[[], object]


def shapes_of(name: str, itemsize: int) -> list[tuple[int, ...]]:
    """Shapes of a set of parameters: 64 MiB in one or a thousand tensors, or GPT-2 small's matrices."""
    elements = 64 * MIB // itemsize
    gpt2: list[tuple[int, ...]] = [*[(768, 768)] * 48, *[(3072, 768), (768, 3072)] * 12]
    if name == "one tensor":
        return [(elements,)]
    if name == "1000 tensors":
        return [(elements // 1000,)] * 1000
    return gpt2


def randoms(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(shape, device="cuda").to(dtype) for shape in shapes]


def rotation(bytes_per_call: int) -> int:
    """How many sets of inputs exceed twice the L2 cache, at least two."""
    return max(2, 1 + 2 * torch.cuda.get_device_properties(0).L2_cache_size // bytes_per_call)


def milliseconds(calls: list[Call], repeats: int) -> list[float]:
    """Device time of single calls, in turn over `calls`."""
    for call in calls:
        call()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for i, (start, end) in enumerate(pairs):
        torch.cuda._sleep(WAIT_CYCLES)
        start.record()
        calls[i % len(calls)]()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairs]


def captured(call: Call) -> Call:
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def copy_calls(elements: int) -> tuple[list[Call], int]:
    """Device copies of `elements` float32 values, and the bytes of one."""
    moved = 8 * elements

    def make() -> Call:
        target, source = randoms([(elements,)] * 2, torch.float32)
        return lambda: target.copy_(source)

    return [make() for _ in range(rotation(moved))], moved


def prologue_calls(shapes: list[tuple[int, ...]], dtypes: tuple[torch.dtype, ...]) -> tuple[list[Call], int]:
    elements = sum(torch.Size(shape).numel() for shape in shapes)
    grad, momentum, out = dtypes
    moved = elements * (grad.itemsize + 2 * momentum.itemsize + out.itemsize)

    def make() -> Call:
        grads, momenta, outs = (randoms(shapes, dtype) for dtype in dtypes)
        sumsq = torch.empty(len(shapes), dtype=torch.float64, device="cuda")

        def call() -> None:
            ops.prologue(grads, momenta, outs, sumsq, momentum=0.95)

        check(momenta + outs, call, f"prologue {dtypes}")
        return call

    return [make() for _ in range(rotation(moved))], moved


def apply_calls(shapes: list[tuple[int, ...]], dtypes: tuple[torch.dtype, ...]) -> tuple[list[Call], int]:
    elements = sum(torch.Size(shape).numel() for shape in shapes)
    param, update = dtypes
    moved = elements * (2 * param.itemsize + update.itemsize)
    lr = torch.tensor(1e-3, device="cuda")
    scales = [0.2] * len(shapes)

    def make() -> Call:
        params, updates = (randoms(shapes, dtype) for dtype in dtypes)

        def call() -> None:
            ops.apply(params, updates, lr=lr, weight_decay=0.1, scales=scales)

        check(params, call, f"apply {dtypes}")
        return call

    return [make() for _ in range(rotation(moved))], moved


def check(written: list[Tensor], call: Call, label: str) -> None:
    """Runs `call` on our kernels and on the reference from the same state; raises unless they agree within rounding."""
    before = [t.clone() for t in written]
    with use_backend("reference"):
        call()
    expected = [t.clone() for t in written]
    for tensor, old in zip(written, before, strict=True):
        tensor.copy_(old)
    call()
    for actual, wanted in zip(written, expected, strict=True):
        eps = torch.finfo(actual.dtype).eps
        torch.testing.assert_close(actual, wanted, rtol=2 * eps, atol=2 * eps, msg=lambda m: f"{label}: {m}")


def measure(calls: list[Call], moved: int, repeats: int) -> dict[str, Any]:
    row: dict[str, Any] = {"bytes": moved}
    for mode, runs in (("eager", calls), ("graph", [captured(call) for call in calls])):
        times = sorted(milliseconds(runs, repeats))
        median = statistics.median(times)
        row[mode] = {
            "ms": median,
            "ms_p10": times[len(times) // 10],
            "ms_p90": times[len(times) * 9 // 10],
            "gb_per_s": moved / median / 1e6,
        }
    return row


def output_of(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown: {error}"


def environment(commit: str | None) -> dict[str, str]:
    query = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
    return {
        "device": torch.cuda.get_device_name(),
        "nvidia_smi": output_of("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "commit": commit or output_of("git", "describe", "--always", "--dirty"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="where the JSON goes")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--commit", help="what is measured, where there is no git to ask")
    args = parser.parse_args()
    torch.manual_seed(0)

    # The yardstick moves as many bytes as the op it is compared with, so that both pay the same start and end.
    copies: dict[int, dict[str, Any]] = {}

    def copy_of(moved: int) -> dict[str, Any]:
        if moved not in copies:
            # Whole vectors: a copy whose size is no multiple of 16 bytes ran at 2.3 instead of 2.9 TB/s.
            copies[moved] = measure(*copy_calls(moved // 8 // 4 * 4), args.repeats)
        return copies[moved]

    rows = []
    with use_backend("cuda"):
        for op, make, combinations in (
            ("prologue", prologue_calls, PROLOGUE_DTYPES),
            ("apply", apply_calls, APPLY_DTYPES),
        ):
            for dtypes in combinations:
                for name in PARAMETER_SETS:
                    calls, moved = make(shapes_of(name, dtypes[0].itemsize), dtypes)
                    row = measure(calls, moved, args.repeats)
                    del calls
                    copy = copy_of(moved)
                    types = "->".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
                    line = f"{op:<9} {types:<28} {name:<13}"
                    for mode in ("eager", "graph"):
                        row[mode]["of_copy"] = row[mode]["gb_per_s"] / copy[mode]["gb_per_s"]
                        line += f" {mode} {row[mode]['ms']:.4f} ms {row[mode]['gb_per_s']:6.0f} GB/s"
                        line += f" {row[mode]['of_copy']:6.1%} of copy;"
                    print(line)
                    rows.append({"op": op, "dtypes": types, "parameters": name, **row, "copy": copy})
    args.output.write_text(json.dumps({"environment": environment(args.commit), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
