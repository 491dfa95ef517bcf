"""One step of a model that several GPUs share: the bits of one process first, then times.

    torchrun --standalone --nproc-per-node 4 -m bench.bench_distributed OUT.json --budget 220

Rows are layouts (FSDP2, HSDP, DDP, tensor parallelism; a mesh of two sides needs four ranks), columns our Muon and, on
DTensors, torch.optim.Muon and dion's, beside our step on one GPU, all in order of importance. A time is that of the
slowest rank, as called, from idle devices. A layout whose results differ from one process's by more than GATE gets no
time. `python -m bench.report OUT.json` prints the file. Exit status 1: of ours something failed, or has other bits
than one process.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from muon_kernels.distributed.costs import HARDWARE
from muon_kernels.distributed.models import Transformer
from muon_kernels.distributed.simulate import model_plan, simulate

from .ceilings import measure_ceilings
from .floors import STEPS, step_bytes, step_flops
from .gate import GateRefused
from .lab import NoNumber, Status
from .layouts import Layout
from .ranks import Ranks
from .shared import MODEL_CELLS, OURS, PAIRS, SHORT_LAYERS, SMOKE_CELLS, Column, Difference, Shared, compare
from .shared_results import SharedResults

GATE = 0.05
"""Length of the difference over that of the way which parameters have gone. Of ours none is expected; two orders of
summation in torch.optim.Muon's bfloat16 chain gave 0.012 to 0.021 with gloo."""

CHECK_STEPS = 5
UNEVEN = [(1, 9), (7, 5), (5, 33), (3, 24), (33, 7)]
LARGE = [(768, 768), (768, 3072), (3072, 768), (1024, 4096), (768, 768), (4096, 1024)]
SMOKE_LARGE = [(24, 40), (40, 24)]
BY_PIECES = [(4096, 4096), (2048, 4096), (4096, 2048)]
"""On up to 4 ranks of pieces so large that owners do not assemble them, and that products write or step them."""
LINK_MIB = (1, 16, 128)
COLLECTIVE_SECONDS = 60  # after which a rank that waits for another one ends the run


class Bench:
    """One run: its ranks, its file, and what later measurements need of earlier ones."""

    def __init__(self, path: Path, ranks: Ranks, commit: str | None) -> None:
        self.ranks = ranks
        self.healthy = True
        self._ceilings = measure_ceilings(ranks.device, smoke=ranks.smoke)
        self._results = SharedResults(path, ranks, self._ceilings, commit)
        self._hardware = HARDWARE[ranks.device.type]
        self._errors: dict[tuple[Column, Layout], float] = {}
        self._alone: dict[Transformer, float] = {}

    def attempt(self, bench: str, cell: str, column: Column, work: Callable[[], None]) -> None:
        """Turns an error into a record. It must be one on every rank: if not, the launcher ends the run."""
        status: Status | None = None
        reason = f"time budget of {self.ranks.budget:.0f} s spent"
        try:
            if self.ranks.in_time():
                work()
            else:
                status = "skipped"
        except GateRefused as refusal:
            status, reason = "refused", str(refusal)
        except ImportError as error:
            status, reason = "absent", str(error)
        except Exception as error:
            status, reason = "failed", f"{type(error).__name__}: {error}".splitlines()[0][:300]
        gc.collect()
        torch.compiler.reset()  # a peer may recompile eight times, and then no more
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()
        if status is not None:
            self.healthy &= status == "skipped" or not column.ours
            entry = NoNumber(bench, cell, column.name, "call", status, reason)
            self._results.add("missing", asdict(entry), f"{status}: {cell}, {column.name}: {reason}")

    def check(self, column: Column, layout: Layout, dtype: torch.dtype) -> None:
        """Compares some steps with those of one process, and counts the elements that differ."""
        large = SMOKE_LARGE if self.ranks.smoke else LARGE
        together = [UNEVEN + large, SMOKE_LARGE if self.ranks.smoke else BY_PIECES]
        if not column.ours:  # torch.optim.Muon refuses fewer rows than ranks
            together = [large[1:3] if column.compiles else large]
        steps = 2 if self.ranks.smoke else CHECK_STEPS
        found = Difference()
        for sizes in together:
            shapes = {f"{i}{'.o' if i % 2 else ''}": shape for i, shape in enumerate(sizes)}
            many, alone = (Shared(self.ranks.device, column, where, shapes, dtype) for where in (layout, None))
            found += compare(many, alone, steps)
        elements, differing = (int(self.ranks.total(n)) for n in (found.elements, found.differing))
        error = (self.ranks.total(found.squares) / self.ranks.total(found.way)) ** 0.5
        self._errors[column, layout] = max(error, self._errors.get((column, layout), 0.0))
        self.healthy &= differing == 0 or not column.ours
        entry = {"provider": column.name, "layout": layout.name, "dtype": _name(dtype), "steps": steps}
        self._results.add(
            "checks",
            entry | {"elements": elements, "differing": differing, "error": error},
            f"{column.name}, {layout.name}, {_name(dtype)}: {differing} of {elements} differ, error {error:.2g}",
        )

    def measure_link(self) -> None:
        """Bytes a second that a rank sends in an all-to-all of even splits; the best one serves predictions."""
        world = self.ranks.world
        for mib in LINK_MIB[:1] if self.ranks.smoke else LINK_MIB:
            send = torch.randint(256, (mib * 2**20 // world * world,), dtype=torch.uint8, device=self.ranks.device)
            receive = torch.empty_like(send)
            stats = self.ranks.time(lambda s=send, r=receive: dist.all_to_all_single(r, s)).as_stats()
            rate = send.numel() * (world - 1) / world / stats["median"]
            entry = {"mib": mib, "bytes_per_s": rate} | stats
            self._results.add("link", entry, f"all-to-all of {mib} MiB: {rate / 1e9:.3g} GB/s")
        self._hardware = self._hardware._replace(link=max(entry["bytes_per_s"] for entry in self._results["link"]))

    def measure(self, cell: str, model: Transformer, dtype: torch.dtype, column: Column, layout: Layout | None) -> None:
        """Times a model's step; without a layout every rank steps all of it by itself."""
        error = self._gated(column, layout)
        subject = Shared(self.ranks.device, column, layout, model.shapes(), dtype)
        stats = self.ranks.time(subject.optimizer.step).as_stats()
        if layout is None:
            self._alone[model] = stats["median"]
        world = self.ranks.world if layout else 1
        efficiency = self._alone[model] / (world * stats["median"]) if model in self._alone else None
        info = {
            "bench": "distributed", "cell": cell, "provider": column.name, "ours": column.ours, "comparable": True,
            "mode": "call", "dtype": _name(dtype), "accuracy": {"error": error}, "efficiency": efficiency,
            "extra_bytes": self._extra_bytes(subject),
        }  # fmt: skip
        self._results.add(
            "benchmarks",
            {"extra_info": info | self._expected(column, model, dtype, layout), "stats": stats},
            f"{cell}, {column.name}: {stats['median'] * 1e3:.4g} ms ±{stats['iqr'] / stats['median']:.1%}"
            + (f", efficiency {efficiency:.3f}" if efficiency and layout else ""),
        )

    def _gated(self, column: Column, layout: Layout | None) -> float:
        """The error of what is about to be timed; GateRefused if it is too large or unknown."""
        if layout is None:
            return 0.0
        if (column, layout) not in self._errors:
            raise GateRefused("was not checked")
        error = self._errors[column, layout]
        if not error <= GATE:
            raise GateRefused(f"error {error:.3g} is over its limit {GATE}")
        return error

    def _expected(
        self, column: Column, model: Transformer, dtype: torch.dtype, layout: Layout | None
    ) -> dict[str, Any]:
        """Work and floor of one rank, and the simulator's `Prediction` of ours if it knows the layout."""
        world = self.ranks.world if layout else 1
        counts = Counter(model.shapes().values())
        minimal, dense = (flops / world for flops in step_flops(counts))
        size = step_bytes(counts, dtype.itemsize) / world
        sides, simulated = (layout.sides(world), layout.simulated) if layout else ((1,), "fsdp")
        predicted = None
        if simulated and column.ours:
            made = model_plan(model, sides, simulated, self._hardware, STEPS)
            found = simulate(made, steps=STEPS, hardware=self._hardware, storage_size=dtype.itemsize)
            predicted = asdict(found)
        work = {"flops_minimal": minimal, "flops_dense": dense, "bytes": size}
        return work | {"floor_s": self._ceilings.floor_in_turn(minimal, size), "predicted": predicted}

    def _extra_bytes(self, subject: Shared) -> int | None:
        """What a step needs at its peak, on the rank that needs most."""
        device = self.ranks.device
        if device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        subject.optimizer.step()
        torch.cuda.synchronize(device)
        return int(self.ranks.largest(torch.cuda.max_memory_allocated(device) - held))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def run(options: argparse.Namespace, device: torch.device) -> bool:
    """Everything, on every rank of the default process group; whether all is well with ours."""
    bench = Bench(options.out, Ranks(device, smoke=options.smoke, budget=options.budget), options.commit)
    world = bench.ranks.world
    fitting = [(column, layout) for column, layout in PAIRS if layout.fits(world)]

    def cells_of(column: Column) -> list[tuple[str, Transformer, torch.dtype]]:
        cells = SMOKE_CELLS if options.smoke else MODEL_CELLS
        return [cell for cell in cells if not column.compiles or cell[1].layers <= SHORT_LAYERS]

    def check(column: Column, layout: Layout) -> None:
        for dtype in dict.fromkeys(dtype for _, _, dtype in cells_of(column)):
            cell = f"{_name(dtype)}, {layout.name} on {world}"
            bench.attempt("check", cell, column, partial(bench.check, column, layout, dtype))

    def measure(column: Column, layout: Layout | None) -> None:
        where = f"{layout.name} on {world}" if layout else "alone"
        for name, model, dtype in cells_of(column):
            cell = f"{name} {_name(dtype)}, {where}"
            work = partial(bench.measure, cell, model, dtype, column, layout)
            bench.attempt("distributed", cell, column, work)

    for pair in fitting:
        if pair[0] is OURS:
            check(*pair)
    bench.attempt("link", f"on {world}", OURS, bench.measure_link)
    measure(OURS, None)
    for pair in fitting:
        if pair[0] is not OURS:
            check(*pair)
        measure(*pair)
    return bench.healthy


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="where the results go")
    parser.add_argument("--budget", type=float, default=220.0, help="seconds after which nothing new is started")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda if there is one")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes: does everything run?")
    parser.add_argument("--commit", help="the commit to name in the file, where the tree is not a repository")
    return parser.parse_args(arguments)


def main() -> int:
    """For torchrun."""
    options = parse(None)
    kind = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=timedelta(seconds=COLLECTIVE_SECONDS))
    try:
        healthy = run(options, device)
        dist.barrier()
    finally:
        dist.destroy_process_group()
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
