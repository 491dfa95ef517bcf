"""Times the sm90 product kernels, tile shape by tile shape, beside torch.matmul in the same process.

    python -m bench.tune_sm90                      # every shape of the list below
    python -m bench.tune_sm90 --tiles -1 0 1 --cases xxt:16x2048x2048x2048

A case is kind:batch x m x n x k. Kinds: `xxt` and `xtx` are the symmetric products of a wide and of a tall X;
`km` and `kk`
are full products with B row-major and column-major; a final `c` adds half of C. Each line has torch's milliseconds and
TFLOP/s, then each tile's milliseconds and ratio to the floor: the product's own FLOPs (half if symmetric) at torch's
rate on that shape. Tile -1 is the one that choose_gemm_tile takes; it is printed with its index.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch

from muon_kernels import extension
from muon_kernels.backends.cuda_products import _items, launch

CASES = (
    "km:1x4096x4096x4096", "km:1x8192x8192x8192", "kk:1x4096x4096x4096", "kmc:1x4096x4096x4096",
    "xxt:1x2048x2048x2048", "xxt:1x4096x4096x4096", "xxtc:1x4096x4096x4096", "xxt:1x8192x8192x8192",
    "xxt:48x768x768x768", "xxtc:48x768x768x768", "xxt:16x2048x2048x2048", "xxt:12x768x768x3072",
    "xxt:24x1024x1024x4096", "xxt:1x4096x4096x11008", "xtx:64x768x768x2048", "km:48x768x768x768",
    "km:12x768x3072x768", "kk:64x2048x768x768", "km:1x2048x2048x2048", "km:16x2048x2048x2048",
    "xxt:1x768x768x768", "xxt:1x768x768x3072", "km:1x768x3072x768", "km:1x768x768x768", "xxt:256x128x128x128",
)  # fmt: skip
SYMMETRIC_TILES = (0, 1, 3, 4, 5)
FULL_TILES = (0, 1, 2, 3, 4, 5)


def milliseconds(calls: dict[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """Median time of each call, from replays of a graph of many; the calls take turns, so that all see one clock."""
    graphs: dict[str, tuple[torch.cuda.CUDAGraph, int]] = {}
    times: dict[str, list[float]] = {name: [] for name in calls}
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def measure(run: Callable[[], object]) -> float:
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop)

    for name, call in calls.items():
        call()
        count = max(2, min(100, int(4 / measure(call)) + 1))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(count):
                call()
        graph.replay()
        graphs[name] = (graph, count)
    for _ in range(rounds):
        for name, (graph, count) in graphs.items():
            times[name].append(measure(graph.replay) / count)
    return {name: statistics.median(values) for name, values in times.items()}


def time_case(case: str, tiles: list[int] | None) -> str:
    """One line of the table."""
    kind, sizes = case.split(":")
    batch, m, n, k = (int(size) for size in sizes.split("x"))
    symmetric = kind[0] == "x"
    a, b, out, c = (
        torch.randn(batch, rows, cols, device="cuda", dtype=torch.bfloat16) / k**0.5
        for rows, cols in ((m, k), (k, n), (m, n), (m, n))
    )
    if kind.startswith("xxt"):
        b = a.mT
    elif kind.startswith("xtx"):
        a = b.mT
    elif kind.startswith("kk"):
        b = b.mT.contiguous().mT
    addend = [c] if kind.endswith("c") else []
    calls: dict[str, Callable[[], object]] = {"torch": lambda: torch.bmm(a, b, out=out)}
    if batch == 1:
        calls["torch"] = lambda: torch.mm(a[0], b[0], out=out[0])
    for tile in tiles or (-1, *(SYMMETRIC_TILES if symmetric else FULL_TILES)):
        name = str(tile)
        if tile == -1:
            items = _items(symmetric, [a], [b], addend, [out])
            count = torch.cuda.get_device_properties(0).multi_processor_count
            name = f"-1={extension.load().choose_gemm_tile(symmetric, items, count)}"
        calls[name] = lambda tile=tile: launch(
            symmetric, [a], [b], addend, [out], alpha=1.0, beta=0.5 if addend else 0.0, tile=tile
        )
    result = milliseconds(calls)
    reference = result.pop("torch")
    floor = reference * ((m + 1) / (2 * m) if symmetric else 1)
    line = " ".join(f"[{name}] {value:.4f} ({value / floor:.3f})" for name, value in result.items())
    return f"{case:24s} torch {reference:.4f} ms {2 * batch * m * n * k / reference / 1e9:4.0f} TF | {line}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, nargs="+", help="default: the chosen one, then all")
    parser.add_argument("--cases", nargs="+", default=CASES)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    for case in arguments.cases:
        print(time_case(case, arguments.tiles), flush=True)


if __name__ == "__main__":
    main()
