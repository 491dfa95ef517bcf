"""Measures the Triton products on this card, and chooses the tile configurations that configs.json holds for it.

    python bench/tune_triton.py sweep            # measures candidates and rewrites this card's part of configs.json
    python bench/tune_triton.py sweep --out F    # ... writes to F instead
    python bench/tune_triton.py time             # prints products and elementwise ops beside torch's

Every time is the median of replays of a CUDA graph that holds many calls; inputs are random. Run the tests first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from muon_kernels import ops, use_backend
from muon_kernels.backends import configs
from muon_kernels.backends.configs import Candidate, GemmConfig
from muon_kernels.backends.triton import gemm, gemm_add, symm_gemm
from muon_kernels.backends.triton.launch import Launch, capability, processors

DATA_FILE = Path(configs.__file__).with_name(configs.DATA_FILE)
LENGTHS = (1024, 4096)
"""The k at which a wave is timed; a line through the two times gives the costs."""

REGISTERS = 65_536
"""Of a multiprocessor, from compute capability 8.0 on."""

SHAPES = [
    (1, 768, 768), (48, 768, 768), (1, 768, 3072), (12, 768, 3072), (24, 1024, 4096), (64, 768, 2048), (1, 2048, 2048),
    (16, 2048, 2048), (1, 4096, 4096), (8, 4096, 4096), (1, 4096, 11008), (1, 8192, 8192), (256, 128, 128),
]  # fmt: skip
"""batch, rows, cols."""

TENSORS = [(1, (8192, 8192)), (48, (768, 3072)), (112, (2048, 2048)), (1000, (128, 256)), (1000, (16, 64))]
"""count, shape."""


def microseconds(call: Callable[[], object], calls: int = 10, replays: int = 15) -> float:
    """Median time of one call within a graph of `calls`."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    graph.replay()
    times = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / calls)
    return statistics.median(times)


# ---- sweep ----------------------------------------------------------------------------------------------------------


def legal(op: str, sm: int) -> Iterator[GemmConfig]:
    """The configurations that are worth a try."""
    sizes = itertools.product((64, 128, 256), (64, 128, 256), (32, 64, 128), (4, 8), (2, 3, 4, 6))
    for block_m, block_n, block_k, warps, stages in sizes:
        area = block_m * block_n
        shared = (block_m + block_n) * block_k * 2 * stages
        # Too large, too many accumulators a thread, or too little work between two barriers.
        if area > 32768 or shared > configs.shared_memory_limit(sm) or not 1024 <= area // warps <= 4096:
            continue
        if op == "symm_gemm" and block_m > block_n:
            continue
        yield GemmConfig(block_m, block_n, block_k, warps, stages, max(8, block_n // block_m))


def wave(op: str, config: GemmConfig, tiles: int, k: int) -> Launch:
    """A product of almost `tiles` tiles, never more, whose matrix is as square as it can be."""
    if op == "symm_gemm":
        # Rows of tiles that are as high as they are wide hold block_n / block_m times as many.
        ratio = config.block_n // config.block_m
        m = n = (math.isqrt(8 * (tiles // ratio) + 1) - 1) // 2 * config.block_n
    else:
        rows = math.isqrt(tiles)
        m, n = rows * config.block_m, tiles // rows * config.block_n
    a = torch.randn(1, m, k, device="cuda").half()
    b = a.mT if op == "symm_gemm" else torch.randn(1, k, n, device="cuda").half()
    out = torch.empty(1, m, n, device="cuda", dtype=torch.float16)
    with mock.patch.object(gemm, "_config", lambda *args: config):
        if op == "symm_gemm":
            (launch,) = symm_gemm.plan([a], [b], [], [out], alpha=1.0, beta=0.0, delta=0.0)
        else:
            (launch,) = gemm_add.plan([a], [b], [], [out], alpha=1.0, beta=0.0)
    return launch


def measure(op: str, config: GemmConfig, units: int) -> Candidate | None:
    """The configuration's costs, or None if it spills."""
    launch = wave(op, config, units, LENGTHS[0])
    compiled = launch.compile()
    launch.run()  # loads the binary, which tells its registers
    if compiled.n_spills:
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    threads = config.warps * 32
    resident = min(
        properties.shared_memory_per_multiprocessor // (compiled.metadata.shared + 1024),
        REGISTERS // (compiled.n_regs * threads),
        properties.max_threads_per_multi_processor // threads,
    )
    alone, full = ([microseconds(wave(op, config, units * count, k).run) for k in LENGTHS] for count in (1, resident))
    per_k, full_per_k = ((times[1] - times[0]) / (LENGTHS[1] - LENGTHS[0]) for times in (alone, full))
    fixed = max(0.1, full[0] - LENGTHS[0] * full_per_k)
    return Candidate(config, resident, *(float(f"{x:.4g}") for x in (fixed, min(per_k, full_per_k), full_per_k)))


def keep(found: Sequence[Candidate], units: int) -> list[Candidate]:
    """For every tile size the best when the card is full, and the best when a tile is alone."""
    kept: dict[GemmConfig, Candidate] = {}
    for size in {(c.config.block_m, c.config.block_n) for c in found}:
        same = [c for c in found if (c.config.block_m, c.config.block_n) == size]
        for tiles in (units, 64 * units):
            best = min(same, key=lambda c: c.cost(tiles, 2048, units))
            kept[best.config] = best
    return sorted(kept.values(), key=lambda c: c.full_us_per_k / (c.resident * c.config.block_m * c.config.block_n))


def sweep(out: Path) -> None:
    """Measures, prints every configuration, and writes those to keep."""
    device = torch.device("cuda", torch.cuda.current_device())
    sm, units = capability(device), processors(device)
    data = json.loads(DATA_FILE.read_text())
    card = data.setdefault(str(sm), json.loads(json.dumps(data[str(max(int(key) for key in data if int(key) <= sm))])))
    for op in ("symm_gemm", "gemm_add"):
        found = []
        for config in legal(op, sm):
            candidate = measure(op, config, units)
            if candidate is not None:
                found.append(candidate)
                rate = 2e-6 * config.block_m * config.block_n * units * candidate.resident / candidate.full_us_per_k
                print(f"{op:<10} {astuple(config)!s:<32} {candidate.resident} resident {rate:7.0f} TFLOP/s, "
                      f"alone {candidate.alone_us_per_k:.4f} full {candidate.full_us_per_k:.4f} us per k, "
                      f"fixed {candidate.fixed_us:.1f} us", flush=True)  # fmt: skip
        card["16 bit"][op] = [
            {
                "config": list(astuple(c.config)),
                "resident": c.resident,
                "us": [c.fixed_us, c.alone_us_per_k, c.full_us_per_k],
            }
            for c in keep(found, units)
        ]
    text = json.dumps(data, indent=1)
    text = re.sub(r"\[\s+((?:[\d.e-]+,\s+)*[\d.e-]+)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m.group(1)) + "]", text)
    text = re.sub(r'\{\s+("config".*?)\s+\}', lambda m: "{" + re.sub(r"\s+", " ", m.group(1)) + "}", text, flags=re.S)
    out.write_text(text + "\n")


# ---- time -----------------------------------------------------------------------------------------------------------


def time_products(batch: int, m: int, n: int, dtype: torch.dtype) -> None:
    """The chains' products for one shape, ours and torch's."""
    x = torch.randn(batch, m, n, device="cuda").mul_(n**-0.5).to(dtype)
    gram = x @ x.mT
    square, wide = torch.empty_like(gram), torch.empty_like(x)
    factors = {"alpha": 2.0, "beta": 0.5}
    report_product("symm_gemm", [x], [x.mT], [], [square], lambda: torch.bmm(x, x.mT, out=square))
    for op, b, out in (("symm_gemm", gram, square), ("gemm_add", x, wide)):
        plain = partial(torch.baddbmm, b, gram, b, **factors, out=out)
        report_product(op, [gram], [b], [b], [out], plain)


def report_product(
    op: str, a: list[Tensor], b: list[Tensor], c: list[Tensor], outs: list[Tensor], plain: Callable[[], object]
) -> None:
    ours, torchs = microseconds(partial(getattr(ops, op), a, b, c, outs, alpha=2.0, beta=0.5)), microseconds(plain)
    batch, m, n = outs[0].shape
    k, device = a[0].shape[2], outs[0].device
    config = configs.gemm_config(op, batch, m, n, k, a[0].itemsize, capability(device), processors(device))
    rate = 2e-6 * batch * m * n * k / ours
    print(
        f"{op:<10} {'+ c' if c else '':<4} {batch:>4} x {m:>5} x {n:>5} x {k:>5} {ours:9.1f} us, torch {torchs:9.1f}, "
        f"{torchs / ours:5.2f} times as fast, {rate:5.0f} TFLOP/s dense-equivalent  {astuple(config)}",
        flush=True,
    )


def copy_rate() -> float:
    """TB/s of a device copy, bytes read and written."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2e-6 * source.nbytes / microseconds(partial(target.copy_, source))


def time_elementwise(count: int, shape: tuple[int, int], rate: float) -> None:
    """One step's elementwise ops on `count` float32 tensors with 16-bit outs."""
    grads, momenta, params = ([torch.randn(shape, device="cuda") for _ in range(count)] for _ in range(3))
    batch = torch.empty(count, *shape, device="cuda", dtype=torch.bfloat16)
    sumsq = torch.empty(count, device="cuda", dtype=torch.float64)
    outs = list(batch.unbind(0))
    calls: dict[str, tuple[int, Callable[[], object]]] = {
        "prologue": (14, partial(ops.prologue, grads, momenta, outs, sumsq, momentum=0.9)),
        "normalize": (4, partial(ops.normalize, [batch], sumsq, [torch.empty_like(batch)], eps=1e-7)),
        "apply": (10, partial(ops.apply, params, outs, lr=1e-9, scales=[1.0] * count)),
    }
    for name, (width, call) in calls.items():
        spent = microseconds(call)
        start = time.perf_counter()
        for _ in range(10):
            call()
        host = (time.perf_counter() - start) * 1e5
        torch.cuda.synchronize()
        achieved = 1e-6 * batch.numel() * width / spent
        print(
            f"{name:<10} {count:>5} x {shape!s:<13} {spent:9.1f} us, {achieved:5.2f} TB/s, "
            f"{achieved / rate:4.0%} of a copy; host {host:6.0f} us a call",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["sweep", "time"])
    parser.add_argument("--out", type=Path, default=DATA_FILE)
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="float16")
    arguments = parser.parse_args()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    print(f"{properties.name}, {properties.multi_processor_count} multiprocessors, torch {torch.__version__}")
    with use_backend("triton"):
        if arguments.command == "sweep":
            sweep(arguments.out)
        else:
            for shape in SHAPES:
                time_products(*shape, getattr(torch, arguments.dtype))
            rate = copy_rate()
            print(f"copy {rate:.2f} TB/s")
            for count, size in TENSORS:
                time_elementwise(count, size, rate)


if __name__ == "__main__":
    main()
