"""Host time of `Muon.step()` for one rank of four: FSDP2's shards, ops and collectives that return at once.

    OMP_NUM_THREADS=1 python -m bench.host_distributed [--profile]

torch's "fake" process group stands for the other ranks and every op does nothing, so that only what Python and torch do
on the host of a step is left; on a device the launches and what a backend reads of its lists come on top. Prints the
least of REPEATS steps, and of each of its parts.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from muon_kernels import Muon, dispatch
from muon_kernels.distributed import runtime
from muon_kernels.distributed.models import MODELS
from muon_kernels.distributed.step import BucketStep
from muon_kernels.distributed.team import Team
from muon_kernels.muon import DEFAULT_WORKSPACE_BYTES

WORLD = 4
REPEATS = 100
DIVISORS = {"gpt2": 48, "llama-8b": 64}
"""Of all sides. A workspace divided by their squares makes as many waves as there are on devices, 1 and 29."""
PARTS: list[tuple[str, Any, str]] = [
    ("prepare", runtime.Shares, "prepare"),
    ("of it the roll call", runtime, "roll_call"),
    ("of that its collective", Team, "all_gather"),
    ("gather", BucketStep, "_gather"),
    ("orthogonalize", BucketStep, "_orthogonalize"),
    ("pass on and apply", BucketStep, "_pass_on"),
    ("all-to-alls in these", Team, "start"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="store_true", help="print what Python spends its time in")
    profiled = parser.parse_args().profile
    torch.set_num_threads(1)
    dist.init_process_group("fake", rank=0, world_size=WORLD, store=FakeStore())
    with patch.object(dispatch, "_select_and_run", lambda *args, **kwargs: None):
        for name, divisor in DIVISORS.items():
            shapes = [(rows // divisor, cols // divisor) for rows, cols in MODELS[name].shapes().values()]
            step = _optimizer(shapes, DEFAULT_WORKSPACE_BYTES // divisor**2).step
            for _ in range(3):
                step()
            print(f"{name}: {1e3 * min(_seconds(step) for _ in range(REPEATS)):.2f} ms")
            for part, seconds in _parts(step).items():
                print(f"  {part}: {1e3 * seconds:.2f}")
            if profiled:
                with cProfile.Profile() as profile:
                    for _ in range(REPEATS):
                        step()
                pstats.Stats(profile).sort_stats("tottime").print_stats(40)
    dist.destroy_process_group()


def _optimizer(shapes: list[tuple[int, int]], workspace: int) -> Muon:
    mesh = init_device_mesh("cpu", (WORLD,))
    put = lambda shape: distribute_tensor(torch.zeros(shape), mesh, [Shard(0)], src_data_rank=None)  # noqa: E731
    params = [torch.nn.Parameter(put(shape)) for shape in shapes]
    for p in params:
        p.grad = put(p.shape)
    return Muon(params, compute_dtype=torch.float16, max_workspace_bytes=workspace)


def _parts(step: Callable[[], Any]) -> dict[str, float]:
    """The least seconds that each part takes of one step, with the 0.1 us of a clock a call."""
    best = dict.fromkeys([name for name, *_ in PARTS], float("inf"))
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.perf_counter() - start

        return call

    with ExitStack() as patches:
        for name, owner, attribute in PARTS:
            patches.enter_context(patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        for _ in range(REPEATS):
            spent.clear()
            step()
            best = {name: min(least, spent[name]) for name, least in best.items()}
    return best


def _seconds(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
