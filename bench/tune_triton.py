"""Measures the Triton products on this card, and chooses the tile configurations that configs.json holds for it.

    python -m bench.tune_triton            # measures candidates and rewrites this card's part of configs.json
    python -m bench.tune_triton --out F    # ... writes to F instead

Every time is the median of replays of a CUDA graph that holds many calls; inputs are random. Run the tests first.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor

from muon_kernels import use_backend
from muon_kernels.backends import configs
from muon_kernels.backends.configs import Candidate, GemmConfig
from muon_kernels.backends.device import capability
from muon_kernels.backends.triton import gemm, gemm_add, symm_gemm
from muon_kernels.backends.triton.launch import Launch, processors, run

from .timing import microseconds

DATA_FILE = Path(configs.__file__).with_name(configs.DATA_FILE)
WORTH = 0.02
"""A candidate is kept if it makes all products together faster by that much of one product's time."""

REGISTERS = 65_536
"""Of a multiprocessor, from compute capability 8.0 on."""

SHAPES = [
    (1, 768, 768), (48, 768, 768), (1, 768, 3072), (12, 768, 3072), (24, 768, 3072), (24, 1024, 1024), (24, 1024, 4096),
    (64, 768, 2048), (1, 2048, 2048), (7, 2048, 2048), (7, 2048, 8192), (16, 2048, 2048), (1, 4096, 4096),
    (8, 4096, 4096), (1, 4096, 11008), (1, 8192, 8192), (256, 128, 128),
]  # fmt: skip
"""batch, rows, cols."""

CANDIDATES = [
    *(
        GemmConfig(*fields, group=8)
        for fields in [
            (128, 256, 64, 8, 3), (128, 128, 64, 4, 3), (128, 128, 64, 8, 3), (128, 128, 64, 8, 4),
            (128, 128, 32, 8, 3), (64, 128, 64, 4, 3), (64, 128, 64, 4, 4), (64, 128, 32, 4, 4), (64, 64, 64, 4, 3),
            (64, 64, 64, 4, 4),
        ]
    ),
    GemmConfig(128, 256, 64, 8, 3, 8, programs=1),
    GemmConfig(128, 256, 64, 8, 4, 8, programs=1),
    GemmConfig(128, 128, 64, 8, 4, 8, programs=1),
    GemmConfig(128, 128, 64, 8, 3, 8, programs=2, registers=128),
    GemmConfig(128, 128, 64, 4, 3, 8, programs=2),
    GemmConfig(64, 128, 64, 4, 4, 8, programs=2),
    GemmConfig(64, 64, 64, 4, 4, 8, programs=3),
]  # fmt: skip


class Product(NamedTuple):
    """A batch of products [m, k] [k, n] as chains have them: X X^T, a polynomial in it, or that times X."""

    op: str
    batch: int
    m: int
    n: int
    k: int

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Operands that can hold random numbers, and the result."""
        a, x, out = (
            torch.empty(self.batch, *shape, device=device, dtype=torch.float16)
            for shape in ((self.m, self.k), (self.k, self.n), (self.m, self.n))
        )
        if self.op == "symm_gemm":
            x = a if self.m == self.k else a.mT
        return a, x, out


def products() -> list[Product]:
    found: dict[Product, None] = {}
    for batch, m, n in SHAPES:
        for k in (n, m):
            found[Product("symm_gemm", batch, m, m, k)] = None
        found[Product("gemm_add", batch, m, n, m)] = None
    return list(found)


def legal(sm: int) -> Iterator[GemmConfig]:
    """The configurations that a card can run."""
    for config in CANDIDATES:
        shared = (config.block_m + config.block_n) * config.block_k * 2 * config.stages
        if shared <= configs.shared_memory_limit(sm) and (sm >= 90 or not config.programs):
            yield config


def plan(product: Product, config: GemmConfig, a: Tensor, b: Tensor, out: Tensor) -> Launch:
    with mock.patch.object(gemm, "_config", lambda *args: config):
        if product.op == "symm_gemm":
            (launch,) = symm_gemm.plan([a], [b], [], [out], alpha=1.0, beta=0.0, delta=0.0)
        else:
            (launch,) = gemm_add.plan([a], [b], [], [out], alpha=1.0, beta=0.0)
    return launch


def compile_all(sm: int, device: torch.device) -> None:
    """Compiles what `sweep` measures, side by side; what cannot be compiled fails again when it is measured."""
    with ThreadPoolExecutor(os.cpu_count()) as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
        for product in products():
            tensors = product.tensors(device)
            for config in legal(sm):
                plan(product, config, *tensors).compile()


def fault(product: Product, a: Tensor, b: Tensor, out: Tensor, expected: Tensor) -> str | None:
    """What is wrong with a result: the first and last matrix are compared, which `expected` holds in float32."""
    error = float((out[[0, -1]].float() - expected).abs().max() / expected.abs().max())
    if not error < 1e-3 or bool(out.isnan().any()):
        return f"errs by {error:.2g} of the largest element"
    if product.op == "symm_gemm" and not torch.equal(out, out.mT):
        return "is not symmetric"
    return None


def resident(launch: Launch) -> int:
    """How many programs a multiprocessor runs at once, of a kernel that ran before."""
    compiled = launch.compile()
    if hasattr(compiled, "result"):
        compiled = compiled.result()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    threads = launch.warps * 32
    return min(
        properties.shared_memory_per_multiprocessor // (compiled.metadata.shared + 1024),
        REGISTERS // (-(-compiled.n_regs // 8) * 8 * threads),
        properties.max_threads_per_multi_processor // threads,
    )


class Measured(NamedTuple):
    """The programs of a configuration that a multiprocessor runs at once, and microseconds by product."""

    resident: int
    us: dict[Product, float]


def measure(product: Product, sm: int, device: torch.device, found: dict[GemmConfig, Measured]) -> None:
    """Adds the times of one product; a configuration that fails or gives wrong results is named and left out."""
    a, b, out = product.tensors(device)
    a.normal_(std=product.k**-0.5)
    if a is b:
        a.copy_((a + a.mT) / 2)
    elif product.op == "gemm_add":
        b.normal_()
    expected = a[[0, -1]].float() @ b[[0, -1]].float()
    # About 2 ms at 500 TFLOP/s.
    calls = min(10, 1 + 10**12 // (2 * product.batch * product.m * product.n * product.k))
    for config in legal(sm):
        name = f"{product.op} {product[1:]} {astuple(config)}"
        try:
            launch = plan(product, config, a, b, out)
            out.fill_(torch.nan)
            run([launch], device)
            wrong = fault(product, a, b, out, expected)
            programs = resident(launch)
            if wrong or programs < max(1, config.programs):
                print(f"{name} LEFT OUT: {wrong or f'{programs} fit on a multiprocessor'}", flush=True)
                continue
            spent = microseconds(partial(run, [launch], device), calls, 5)
        except (RuntimeError, triton.TritonError) as error:
            print(f"{name} LEFT OUT: {error!r}"[:300], flush=True)
            continue
        rate = 2e-6 * product.batch * product.m * product.n * product.k / spent
        print(f"{name} {spent:.1f} us {rate:.0f} TFLOP/s", flush=True)
        known = found.setdefault(config, Measured(config.programs or programs, {}))
        known.us[product] = spent
        if programs < known.resident:
            found[config] = known._replace(resident=programs)


def fit(config: GemmConfig, measured: Measured, units: int) -> Candidate:
    """The candidate whose costs come closest to the measured times, relative to them."""
    candidate = Candidate(config, measured.resident, 1.0, 1.0, 1.0)
    rows = []
    for (op, batch, m, n, k), us in measured.us.items():
        full, alone = candidate.waves(batch * configs.tile_count(op, config, m, n), units)
        rows.append([(full + alone) / us, k * alone / us, k * full / us])
    matrix = torch.tensor(rows, dtype=torch.float64)
    costs = torch.linalg.lstsq(matrix, torch.ones(len(rows), 1, dtype=torch.float64), driver="gelsd").solution
    fixed, alone_per_k, per_k = (float(f"{x:.4g}") for x in costs.flatten().tolist())
    # Alone a tile has the whole multiprocessor, and at least its share.
    alone_per_k = min(max(alone_per_k, float(f"{per_k / measured.resident:.4g}")), per_k)
    return replace(candidate, fixed_us=max(0.1, fixed), alone_us_per_k=alone_per_k, full_us_per_k=per_k)


def choose(kept: Sequence[Candidate], product: Product, units: int, *, described: bool) -> Candidate:
    """As `configs.gemm_config` does."""
    legal = [c for c in kept if described or not c.config.programs]
    return configs.cheapest(legal, *product, units)


def keep(found: dict[GemmConfig, Measured], units: int) -> list[Candidate]:
    """The candidates among which the model's choices are measured fastest, with descriptors and without."""
    fitted = [fit(config, measured, units) for config, measured in found.items() if all_measured(found, config)]

    def loss(kept: Sequence[Candidate]) -> float:
        """Sum of log times."""
        picks = ((p, choose(kept, p, units, described=d)) for p in found[fitted[0].config].us for d in (False, True))
        return sum(math.log(found[pick.config].us[p]) for p, pick in picks)

    first = min((c for c in fitted if not c.config.programs), key=lambda c: loss([c]))
    kept = [first]
    while len(kept) < len(fitted):
        best = min((c for c in fitted if c not in kept), key=lambda c: loss([*kept, c]))
        if loss(kept) - loss([*kept, best]) < WORTH:
            break
        kept.append(best)
    return kept


def all_measured(found: dict[GemmConfig, Measured], config: GemmConfig) -> bool:
    return len(found[config].us) == max(len(measured.us) for measured in found.values())


def report_choices(kept: Sequence[Candidate], found: dict[GemmConfig, Measured], units: int) -> None:
    for product in found[kept[0].config].us:
        best = min(measured.us.get(product, math.inf) for measured in found.values())
        picks = [choose(kept, product, units, described=d).config for d in (True, False)]
        texts = [
            f"{found[c].us[product]:9.1f} us ({found[c].us[product] / best:.2f} of the best) {astuple(c)}"
            for c in picks
        ]
        print(f"{product.op} {product[1:]!s:<24} {texts[0]}, without descriptors {texts[1]}", flush=True)


def entry(candidate: Candidate) -> dict[str, Any]:
    values = list(astuple(candidate.config))
    while values[-1] in (None, 0):  # fields that have their defaults
        values.pop()
    costs = [candidate.fixed_us, candidate.alone_us_per_k, candidate.full_us_per_k]
    return {"config": values, "resident": candidate.resident, "us": costs}


def sweep(out: Path) -> None:
    """Measures, prints every time and what the file's choices lose, and writes the candidates to keep."""
    device = torch.device("cuda", torch.cuda.current_device())
    sm, units = capability(device), processors(device)
    data = json.loads(DATA_FILE.read_text())
    card = data.setdefault(str(sm), json.loads(json.dumps(data[str(max(int(key) for key in data if int(key) <= sm))])))
    start = time.perf_counter()
    compile_all(sm, device)
    print(f"compiled after {time.perf_counter() - start:.0f} s", flush=True)
    found: dict[str, dict[GemmConfig, Measured]] = {"symm_gemm": {}, "gemm_add": {}}
    for product in products():
        measure(product, sm, device, found[product.op])
    for op, measured in found.items():
        kept = keep(measured, units)
        report_choices(kept, measured, units)
        card["16 bit"][op] = [entry(candidate) for candidate in kept]
    # Lists of numbers and candidates on one line each.
    text = json.dumps(data, indent=1)
    for pattern in (r"\[\s+(?:(?:[\d.e-]+|null),?\s+)+\]", r'\{\s+"config"[^}]*\}'):
        text = re.sub(pattern, lambda m: re.sub(r"(?<=[\[{])\s+|\s+(?=[\]}])", "", re.sub(r"\s+", " ", m[0])), text)
    out.write_text(text + "\n")
    print(f"done after {time.perf_counter() - start:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DATA_FILE)
    arguments = parser.parse_args()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    print(f"{properties.name}, {properties.multi_processor_count} multiprocessors, torch {torch.__version__}")
    with use_backend("triton"):
        sweep(arguments.out)


if __name__ == "__main__":
    main()
