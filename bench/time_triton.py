"""Times the Triton products beside torch's, and the elementwise ops beside a copy: python -m bench.time_triton"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import astuple
from functools import partial

import torch
from torch import Tensor

from muon_kernels import ops, use_backend
from muon_kernels.backends import configs
from muon_kernels.backends.device import capability
from muon_kernels.backends.triton.launch import processors

from .timing import microseconds
from .tune_triton import SHAPES

TENSORS = [(1, (8192, 8192)), (48, (768, 3072)), (112, (2048, 2048)), (1000, (128, 256)), (1000, (16, 64))]
"""Of the lists for the elementwise ops: count, shape."""


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
    """Times an op on lists of one batch each, and `plain`, which is torch's call for the same, and prints both."""
    ours, torchs = microseconds(partial(getattr(ops, op), a, b, c, outs, alpha=2.0, beta=0.5)), microseconds(plain)
    batch, m, n = outs[0].shape
    k, device = a[0].shape[2], outs[0].device
    card = (capability(device), processors(device))
    config = configs.gemm_config(op, batch, m, n, k, a[0].itemsize, *card, wide=True, described=True)
    rate = 2e-6 * batch * m * n * k / ours
    print(
        f"{op:<10} {'+ c' if c else '':<4} {batch:>4} x {m:>5} x {n:>5} x {k:>5} {ours:9.1f} us, torch {torchs:9.1f}, "
        f"{torchs / ours:5.2f} times as fast, {rate:5.0f} TFLOP/s dense-equivalent  {config and astuple(config)}",
        flush=True,
    )


def copy_rate() -> float:
    """TB/s of a device copy, bytes read and written."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2e-6 * source.nbytes / microseconds(partial(target.copy_, source))


def time_elementwise(count: int, shape: tuple[int, int], rate: float) -> None:
    """One step's elementwise ops on `count` float32 tensors with 16-bit outs.

    Args:
        rate: of a copy, in TB/s.
    """
    grads, momenta, params = ([torch.randn(shape, device="cuda") for _ in range(count)] for _ in range(3))
    batch = torch.empty(count, *shape, device="cuda", dtype=torch.bfloat16)
    sumsq = torch.empty(count, device="cuda", dtype=torch.float64)
    outs = list(batch.unbind(0))
    calls: dict[str, tuple[int, Callable[[], object]]] = {  # with the bytes that an element takes, read and written
        "prologue": (14, partial(ops.prologue, grads, momenta, outs, sumsq, momentum=0.9)),
        "normalize": (4, partial(ops.normalize, [batch], sumsq, [torch.empty_like(batch)], eps=1e-7)),
        "apply": (10, partial(ops.apply, params, outs, lr=1e-9, scales=[1.0] * count)),
    }
    for name, (size, call) in calls.items():
        spent = microseconds(call)
        start = time.perf_counter()
        for _ in range(10):
            call()
        host = (time.perf_counter() - start) * 1e5
        torch.cuda.synchronize()
        achieved = 1e-6 * batch.numel() * size / spent
        print(
            f"{name:<10} {count:>5} x {shape!s:<13} {spent:9.1f} us, {achieved:5.2f} TB/s, "
            f"{achieved / rate:4.0%} of a copy; host {host:6.0f} us a call",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="float16")
    arguments = parser.parse_args()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    print(f"{properties.name}, {properties.multi_processor_count} multiprocessors, torch {torch.__version__}")
    with use_backend("triton"):
        for shape in SHAPES:
            time_products(*shape, getattr(torch, arguments.dtype))
        rate = copy_rate()
        print(f"copy {rate:.2f} TB/s")
        for count, size in TENSORS:
            time_elementwise(count, size, rate)


if __name__ == "__main__":
    main()
