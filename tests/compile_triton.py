"""Compiles the Triton kernels for cards that are not there, and reads what the assembler says about them.

`python tests/compile_triton.py [sm ...]` compiles every kernel with every configuration that configs.json knows, prints
shared memory, registers and spills, and fails if a kernel does not fit.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.runtime import driver

from muon_kernels.backends import configs
from muon_kernels.backends.configs import GemmConfig
from muon_kernels.backends.triton import (
    apply,
    gemm,
    gemm_add,
    gemm_apply,
    gram_norms,
    normalize,
    prologue,
    sum_squares,
    symm_gemm,
)
from muon_kernels.backends.triton.elementwise import MAX_TENSORS
from muon_kernels.backends.triton.launch import Launch
from muon_kernels.program import NORM_ROWS

ALLOWED_SPILL = 64
"""Bytes. On sm100 symm_gemm with a summand spills 32 outside its loop, where a whole tile is in registers."""

WIDE_SPILL = 384
"""The same of symm_gemm on sm90, where a tile and its mirror image are in registers outside the loop: 208 to 362 of
wide tiles with a summand, and 104 where two programs of 8 warps share a multiprocessor."""

CONFIGURED = {"symm_gemm": "symm_gemm", "gemm_add": "gemm_add", "gemm_apply": "gemm_add"}
"""The products, and the op whose configurations each takes."""

CAPABILITIES = (80, 86, 89, 90, 100, 120)


class Card:
    """As much of a Triton driver as compiling takes."""

    def __init__(self, sm: int) -> None:
        self._sm = sm

    def get_current_device(self) -> int:
        return self._sm

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._sm, 32)


@contextmanager
def target(sm: int) -> Iterator[None]:
    """Within the block Triton compiles for compute capability `sm`."""
    # driver.reset_active() would look for a card.
    with mock.patch.object(driver, "_active", Card(sm)):
        yield


@dataclass(frozen=True)
class Resources:
    """What one program takes of a multiprocessor."""

    shared: int
    registers: int
    spilled: int
    kernel: str

    def fits(self, sm: int) -> bool:
        allowed = WIDE_SPILL if (self.kernel, sm) == ("symm_gemm_kernel", 90) else ALLOWED_SPILL
        return self.shared <= configs.shared_memory_limit(sm) and self.spilled <= allowed


def resources(compiled: Any, sm: int) -> Resources:
    """Assembles a compiled kernel's PTX for `sm`."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(compiled.asm["ptx"])
        command = [get_ptxas(sm).path, "-v", f"--gpu-name={sm_arch_from_capability(sm)}", str(source)]
        done = subprocess.run([*command, "-o", str(source) + ".o"], capture_output=True, text=True, check=True)
    (registers,) = re.findall(r"Used (\d+) registers", done.stderr)
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", done.stderr)))
    return Resources(compiled.metadata.shared, int(registers), spilled, compiled.metadata.name)


def products(config: GemmConfig, dtype: torch.dtype) -> Iterator[Launch]:
    """What the chains launch: X X^T, a polynomial in it, and a product with X, for wide and for transposed X; and what
    ends them: that product with parameters, in float32 and, stored as X is, in bfloat16."""
    with mock.patch.object(gemm, "_config", lambda *args: config):
        for x in (torch.empty(2, 256, 1024, dtype=dtype), torch.empty(2, 1024, 256, dtype=dtype).mT):
            gram = torch.empty(2, 256, 256, dtype=dtype)
            yield from symm_gemm.plan([x], [x.mT], [], [gram], alpha=1.0, beta=0.0, delta=0.0)
            yield from symm_gemm.plan([gram], [gram], [gram], [gram], alpha=2.0, beta=0.5, delta=0.0)
            yield from gained([gram])
            yield from gemm_add.plan([gram], [x], [x], [x], alpha=2.0, beta=0.5)
            yield from gemm_add.plan([gram], [x], [], [x.float()], alpha=1.0, beta=0.0)
            rows, cols = torch.empty(256, 1024), torch.empty(1024, 256, dtype=torch.bfloat16).mT
            yield from stepped([gram], [x], [rows if x.is_contiguous() else cols] * 2)


def gained(grams: list[Tensor]) -> Iterator[Launch]:
    """Products with powers of gains, as squaring makes them."""
    norms = [x.new_empty(len(x), 2, triton.cdiv(x.shape[1], NORM_ROWS)) for x in grams]
    for powers in ((4, 2, 0), (1, 1, 1)):
        options = {"alpha": 2.0, "beta": 0.5, "delta": 1.0, "norms": norms, "powers": powers}
        yield from symm_gemm.plan(grams, grams, grams, grams, **options)


def norms_of_grams(dtype: torch.dtype) -> Iterator[Launch]:
    """Of matrices whose rows are loaded 16 bytes at a time, and of as many others as a launch takes."""
    for sides in ([256], [33 + 2 * i for i in range(gemm.MAX_ENTRIES)]):
        grams = [torch.empty(2, side, side, dtype=dtype) for side in sides]
        outs = [torch.empty(2, 2, triton.cdiv(side, NORM_ROWS), dtype=dtype) for side in sides]
        yield from gram_norms.plan(grams, outs)


def stepped(a: list[Tensor], b: list[Tensor], params: list[Tensor]) -> Iterator[Launch]:
    """gemm_apply with the learning rate, as if that were one, on the device."""
    scalar = torch.empty(1)
    options = {"weight_decay": 0.1, "scales": [1.0] * len(params), "found_inf": scalar}
    with mock.patch.object(torch.Tensor, "is_cpu", False):
        yield from gemm_apply.plan(a, b, params, lr=scalar, **options)


def mixed_products(dtype: torch.dtype) -> Iterator[Launch]:
    """As many entries as one launch takes, with extents that no load can be wide for; and as many parameters."""
    xs = [torch.empty(2, 33 + 2 * i, 71, dtype=dtype) for i in range(gemm.MAX_ENTRIES)]
    grams = [torch.empty(2, x.shape[1], x.shape[1], dtype=dtype) for x in xs]
    yield from symm_gemm.plan(xs, [x.mT for x in xs], grams, grams, alpha=1.0, beta=0.0, delta=0.0)
    yield from gained(grams)
    yield from gemm_add.plan(grams, xs, xs, xs, alpha=1.0, beta=0.0)
    yield from stepped(grams, xs, [torch.empty(x.shape[1:]) for x in xs for _ in range(2)])
    matrices = torch.empty(MAX_TENSORS, 64, 64, dtype=dtype)
    yield from stepped([matrices], [matrices], list(matrices.float().unbind(0)))


def elementwise(dtype: torch.dtype, count: int = 64) -> Iterator[Launch]:
    """Prologue, normalisation and apply as one optimizer step launches them, and sums of squares without a prologue."""
    tensors = [torch.empty(256, 1024, dtype=dtype) for _ in range(count)]
    outs = [torch.empty(256, 1024, dtype=torch.bfloat16) for _ in range(count)]
    sumsq = torch.empty(count, dtype=torch.float64)
    scalar = torch.empty(1)
    options = {"momentum": 0.9, "nesterov": True, "ema": True, "maximize": False}
    yield from prologue.plan(tensors, tensors, outs, sumsq, **options, grad_scale=scalar, found_inf=scalar)
    batch = torch.empty(count, 256, 1024, dtype=torch.bfloat16)
    for own in (tensors[:1], [x.mT for x in tensors[:1]]):
        matrices = [x[None] for x in own]
        yield from sum_squares.plan(matrices, sumsq[:1])
        for sums in (sumsq[:1], None):
            yield from normalize.plan(matrices, sums, [x.half() for x in matrices], eps=0.0, safety_factor=1.0)
    yield from normalize.plan([batch], sumsq, [batch.half()], eps=0.0, safety_factor=1.0)
    scales = [1.0] * count
    yield from apply.plan(tensors, outs, lr=scalar, weight_decay=0.1, scales=scales, found_inf=scalar)
    # As if the learning rate were on the device.
    with mock.patch.object(torch.Tensor, "is_cpu", False):
        yield from apply.plan(tensors, outs, lr=scalar, weight_decay=0.1, scales=scales, found_inf=scalar)


def every_launch(sm: int) -> Iterator[Launch]:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for op, configured in CONFIGURED.items():
            for candidate in configs.candidates(configured, dtype.itemsize, sm):
                for launch in products(candidate.config, dtype):
                    if launch.kernel.__name__.startswith(op):
                        yield launch
        yield from mixed_products(dtype)
        yield from norms_of_grams(dtype)
        yield from elementwise(dtype)


def main(capabilities: list[int]) -> int:
    faults = 0
    print(f"triton {triton.__version__}")
    for sm in capabilities:
        with target(sm):
            seen = set()
            for launch in every_launch(sm):
                compiled = launch.compile()
                if compiled.hash in seen:
                    continue
                seen.add(compiled.hash)
                found = resources(compiled, sm)
                faults += not found.fits(sm)
                tile = "x".join(str(launch.arguments[k]) for k in launch.arguments if k.startswith(("BLOCK", "TILE")))
                print(
                    f"sm{sm} {launch.kernel.__name__:<20} {tile:<12} {launch.warps} warps {launch.stages} stages "
                    f"{found.shared:>7} B {found.registers:>4} registers {found.spilled:>4} B spilled"
                    f"{'' if found.fits(sm) else '  DOES NOT FIT'}",
                    flush=True,
                )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main([int(arg) for arg in sys.argv[1:]] or list(CAPABILITIES)))
