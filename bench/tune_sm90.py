"""Checks and times the sm90 product kernels, tile shape by tile shape, beside torch.matmul in the same process.

    python bench/tune_sm90.py check --library build/libgemm.so --tiles 0 1 2
    python bench/tune_sm90.py time --library build/libgemm.so --tiles 0 1 2

`check` compares every element with float64 on the same rounded inputs, over poisoned outputs, odd shapes, strides and groups,
and exits non-zero at the first fault; `time` prints one line a shape: torch's milliseconds and TFLOP/s, then each tile's
ratio to the floor (the product's own FLOPs, half of them if symmetric, at the rate torch reached on that shape).
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys

import torch
from torch import Tensor

Matrix = list[int]


class Library:
    """The launcher behind a C entry point that takes 21 integers an item."""

    def __init__(self, path: str) -> None:
        self._gemm = ctypes.CDLL(path).gemm

    def gemm(
        self, a: list[Tensor], b: list[Tensor], c: list[Tensor], outs: list[Tensor], *, symmetric: bool, tile: int,
        alpha: float = 1.0, beta: float = 0.0, delta: float = 0.0, factors: list[Tensor] | None = None,
    ) -> None:  # fmt: skip
        table: list[int] = []
        for i, out in enumerate(outs):
            table += [*out.shape, a[i].shape[2], *_view(a[i]), *_view(b[i])]
            table += [*(_view(c[i]) if c else [0] * 4), *_view(out), factors[i].data_ptr() if factors else 0]
        items = (ctypes.c_int64 * len(table))(*table)
        error = self._gemm(
            items, len(outs), int(symmetric), int(outs[0].dtype == torch.float16), ctypes.c_float(alpha),
            ctypes.c_float(beta), ctypes.c_float(delta), tile, ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
        )  # fmt: skip
        if error:
            raise RuntimeError(f"launch failed: cudaError {error}")


def _view(tensor: Tensor) -> Matrix:
    return [tensor.data_ptr(), *tensor.stride()]


def strided(batch: int, rows: int, cols: int, dtype: torch.dtype, *, poison: bool = False, pad: int = 8) -> Tensor:
    """A random (or NaN) batch whose rows and matrices are further apart than they need to be."""
    row = -(-cols // 8) * 8 + pad
    step = row * rows + 3 * pad
    flat = torch.full((step * batch + 64,), float("nan"), device="cuda", dtype=dtype)
    view = flat.as_strided((batch, rows, cols), (step, row, 1))
    if not poison:
        view.copy_(torch.randn(batch, rows, cols, device="cuda") / cols**0.5)
    return view


def expect(condition: bool, what: str) -> None:
    if not condition:
        sys.exit(f"WRONG: {what}")


def compare(out: Tensor, exact: Tensor, plain: Tensor, what: str) -> float:
    """Error of out against the float64 result, over the error of plain torch in the same dtype."""
    expect(bool(out.isfinite().all()), f"{what}: unwritten or non-finite elements")
    scale = exact.norm()
    ours, theirs = ((x.double() - exact).norm() / scale for x in (out, plain))
    worst = (out.double() - exact).abs().max() / exact.abs().max()
    ratio = float(ours / (theirs + 1e-4))
    expect(ratio < 2 and float(worst) < 2e-2, f"{what}: error {ours:.2e} (torch {theirs:.2e}), worst {worst:.2e}")
    return ratio


def untouched(out: Tensor, what: str) -> None:
    """Nothing around the view was written."""
    flat = torch.as_strided(out, (out.untyped_storage().nbytes() // 2,), (1,), 0).clone()
    flat.as_strided(out.shape, out.stride(), out.storage_offset()).fill_(float("nan"))
    expect(bool(flat.isnan().all()), f"{what}: wrote outside the output")


def check_symmetric(library: Library, tile: int, dtype: torch.dtype) -> None:
    shapes = [(1, 8, 8), (1, 136, 264), (3, 200, 1000), (2, 768, 768), (1, 264, 72), (2, 1000, 520), (5, 128, 128),
              (1, 2048, 512)]  # fmt: skip
    for tall in (False, True):
        singles = []
        for batch, m, k in shapes:
            x = strided(batch, k, m, dtype).mT if tall else strided(batch, m, k, dtype)
            singles.append((x, x.mT, strided(batch, m, m, dtype, poison=True)))
            library.gemm([x], [x.mT], [], [singles[-1][2]], symmetric=True, tile=tile, alpha=0.5)
            what = f"tile {tile} {dtype} X X^T {batch}x{m}x{k} tall={tall}"
            out = singles[-1][2]
            compare(out, 0.5 * (x.double() @ x.mT.double()), (0.5 * (x.float() @ x.mT.float())).to(dtype), what)
            expect(torch.equal(out, out.mT), f"{what}: not symmetric")
            untouched(out, what)
        outs = [torch.full_like(s[2], float("nan")) for s in singles]
        library.gemm([s[0] for s in singles], [s[1] for s in singles], [], outs, symmetric=True, tile=tile, alpha=0.5)
        for shape, out, (_, _, alone) in zip(shapes, outs, singles, strict=True):
            expect(torch.equal(out, alone), f"tile {tile} grouped {shape}: other bits than alone")
    for batch, m in [(1, 8), (2, 136), (3, 200), (1, 768), (2, 1032)]:
        half = strided(batch, m, m, dtype)
        a = strided(batch, m, m, dtype, poison=True)
        a.copy_((half + half.mT) / 2)
        c = strided(batch, m, m, dtype, poison=True)
        c.copy_((half - 2 * torch.eye(m, device="cuda", dtype=dtype) + half.mT) / 2)
        factors = torch.rand(batch, device="cuda") + 0.5
        exact = 1.5 * factors.double()[:, None, None] * (a.double() @ a.double())
        exact += -0.75 * c.double() + 0.25 * torch.eye(m, device="cuda", dtype=torch.float64)
        for b in (a.mT, a):
            out = strided(batch, m, m, dtype, poison=True)
            library.gemm([a], [b], [c], [out], symmetric=True, tile=tile, alpha=1.5, beta=-0.75, delta=0.25,
                         factors=[factors])  # fmt: skip
            compare(out, exact, exact.to(dtype), f"tile {tile} {dtype} A A + C + I {batch}x{m}")
            expect(torch.equal(out, out.mT), f"tile {tile} A A {batch}x{m}: not symmetric")


def check_full(library: Library, tile: int, dtype: torch.dtype) -> None:
    shapes = [(1, 8, 8, 8), (2, 136, 264, 72), (1, 200, 1000, 200), (3, 768, 520, 768), (1, 1032, 328, 2048), (1, 72, 2048, 136)]
    for a_mn in (False, True):
        for b_mn in (True, False):
            for with_c in (False, True):
                operands = []
                for batch, m, n, k in shapes:
                    a = strided(batch, k, m, dtype).mT if a_mn else strided(batch, m, k, dtype)
                    b = strided(batch, k, n, dtype) if b_mn else strided(batch, n, k, dtype).mT
                    operands.append((a, b, strided(batch, m, n, dtype), strided(batch, m, n, dtype, poison=True)))
                columns = [list(column) for column in zip(*operands, strict=True)]
                a, b, c, outs = columns
                options = {"symmetric": False, "tile": tile, "alpha": 0.5, "beta": 2.0 if with_c else 0.0}
                library.gemm(a, b, c if with_c else [], outs, **options)
                for i, shape in enumerate(shapes):
                    what = f"tile {tile} {dtype} A B {shape} majors {a_mn} {b_mn} C {with_c}"
                    exact = 0.5 * (a[i].double() @ b[i].double()) + (2.0 * c[i].double() if with_c else 0)
                    compare(outs[i], exact, exact.to(dtype), what)
                    untouched(outs[i], what)
                    alone = torch.full_like(outs[i], float("nan"))
                    library.gemm([a[i]], [b[i]], [c[i]] if with_c else [], [alone], **options)
                    expect(torch.equal(alone, outs[i]), f"{what}: other bits alone")


def check_repeats(library: Library, tile: int, repeats: int) -> None:
    """The same bits on every run; many tiles and few k steps, so that stages are reused quickly."""
    x = torch.randn(2, 1536, 1160, device="cuda").bfloat16()
    y, c = torch.randn(4, 136, 2048, device="cuda").bfloat16(), torch.randn(4, 2048, 2048, device="cuda").bfloat16()
    c = (c + c.mT) / 2
    first = None
    for _ in range(repeats):
        outs = [torch.full((2, 1536, 1536), float("nan"), device="cuda", dtype=torch.bfloat16)]
        outs += [torch.full((4, 2048, 2048), float("nan"), device="cuda", dtype=torch.bfloat16) for _ in range(2)]
        library.gemm([x], [x.mT], [], outs[:1], symmetric=True, tile=tile)
        library.gemm([y.mT], [y], [c], outs[1:2], symmetric=True, tile=tile, beta=1.0)
        library.gemm([y.mT], [y], [c], outs[2:], symmetric=False, tile=tile, beta=1.0)
        first = outs if first is None else first
        expect(all(map(torch.equal, first, outs)), f"tile {tile}: other bits on another run")
        expect(torch.equal(outs[1], outs[2]), f"tile {tile}: symmetric and full differ")


def milliseconds(calls: dict[str, object], rounds: int = 7) -> dict[str, float]:
    """Median time of each call, the calls taking turns so that all see the same clocks."""
    repeats, times = {}, {name: [] for name in calls}
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def measure(call: object, count: int) -> float:
        start.record()
        for _ in range(count):
            call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / count

    for name, call in calls.items():
        call()
        repeats[name] = max(2, min(50, int(4 / measure(call, 3)) + 1))
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(measure(call, repeats[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def time_shapes(library: Library, tiles: list[int], cases: list[str]) -> None:
    dtype = torch.bfloat16
    for case in cases:
        kind, sizes = case.split(":")
        batch, m, n, k = (int(size) for size in sizes.split("x"))
        if kind == "xxt":
            a = torch.randn(batch, m, k, device="cuda", dtype=dtype) / k**0.5
            b = a.mT
        elif kind == "xtx":
            b = torch.randn(batch, k, m, device="cuda", dtype=dtype) / k**0.5
            a = b.mT
        else:
            a = torch.randn(batch, m, k, device="cuda", dtype=dtype) / k**0.5
            b = torch.randn(batch, k, n, device="cuda", dtype=dtype)
            if kind.startswith("kk"):
                b = torch.randn(batch, n, k, device="cuda", dtype=dtype).mT
        symmetric = kind[0] == "x"
        out = torch.empty(batch, m, n, device="cuda", dtype=dtype)
        c = [torch.randn(batch, m, n, device="cuda", dtype=dtype)] if kind.endswith("c") else []
        calls = {"torch": lambda a=a, b=b, out=out: torch.bmm(a, b, out=out)}
        if batch == 1:
            calls["torch"] = lambda a=a[0], b=b[0], out=out[0]: torch.mm(a, b, out=out)
        for tile in tiles:
            calls[str(tile)] = lambda tile=tile, a=a, b=b, c=c, out=out, s=symmetric: library.gemm(
                [a], [b], c, [out], symmetric=s, tile=tile, beta=0.5 if c else 0.0
            )
        result = milliseconds(calls)
        reference = result.pop("torch")
        floor = reference * ((m + 1) / (2 * m) if symmetric else 1)
        rate = 2 * batch * m * n * k / reference / 1e9
        line = " ".join(f"[{name}] {value:.4f} ({value / floor:.3f})" for name, value in result.items())
        print(f"{case:24s} torch {reference:.4f} ms {rate:4.0f} TF | {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("check", "time"))
    parser.add_argument("--library", required=True)
    parser.add_argument("--tiles", type=int, nargs="+", required=True)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--cases", nargs="+", default=[
        "km:1x4096x4096x4096", "km:1x8192x8192x8192", "kk:1x4096x4096x4096", "kmc:1x4096x4096x4096",
        "xxt:1x2048x2048x2048", "xxt:1x4096x4096x4096", "xxtc:1x4096x4096x4096", "xxt:1x8192x8192x8192",
        "xxt:48x768x768x768", "xxtc:48x768x768x768", "xxt:16x2048x2048x2048", "xxt:12x768x768x3072",
        "xxt:24x1024x1024x4096", "xxt:1x4096x4096x11008", "xtx:64x768x768x2048", "km:48x768x768x768",
        "km:12x768x3072x768", "kk:64x2048x768x768", "km:1x2048x2048x2048", "km:16x2048x2048x2048",
        "xxt:1x768x768x768", "xxt:1x768x768x3072", "km:1x768x3072x768", "km:1x768x768x768", "xxt:256x128x128x128",
    ])  # fmt: skip
    arguments = parser.parse_args()
    torch.manual_seed(torch.initial_seed() if arguments.command == "check" else 0)
    library = Library(arguments.library)
    if arguments.command == "time":
        time_shapes(library, arguments.tiles, arguments.cases)
        return
    for tile in arguments.tiles:
        for dtype in (torch.bfloat16, torch.float16):
            check_symmetric(library, tile, dtype)
            check_full(library, tile, dtype)
        check_repeats(library, tile, arguments.repeats)
        torch.cuda.synchronize()
        print(f"tile {tile}: all right", flush=True)


if __name__ == "__main__":
    main()
