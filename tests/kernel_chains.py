"""Chains of every method and 16-bit dtype, small and large, for a sanitizer; the results are compared with float64.

compute-sanitizer --tool racecheck --kernel-name kns=muon_kernels python tests/kernel_chains.py --part 0 --parts 6
"""

from __future__ import annotations

import argparse
from itertools import product

import torch
from torch import Tensor

from muon_kernels import use_backend
from muon_kernels.coefficients import resolve_coefficients
from muon_kernels.orthogonalize import Orthogonalizer

GROUPS = (
    [(40, 128, 128)],
    [(2, 64, 96), (1, 96, 64)],
    [(1, 768, 768)],
    [(3, 256, 1024), (2, 1024, 256)],
    [(2, 512, 512), (3, 128, 384), (1, 384, 128)],
    [(1, 640, 1100)],
)
CASES = list(product(GROUPS, ("standard", "gram", "squaring"), (torch.float16, torch.bfloat16)))

TOLERANCES = {torch.float16: 0.05, torch.bfloat16: 0.4}
"""Of a result's distance from float64's over its length: a few times what was seen (0.012 and 0.10 on a CPU, 0.009 and
0.071 on an H100)."""

REPEATS = 2  # the second finds what the first left in the scratch memory


def run(groups: list[tuple[int, int, int]], method: str, dtype: torch.dtype, device: str, backend: str) -> float:
    """Orthogonalises random matrices; returns the largest relative distance from float64's result."""
    torch.manual_seed(0)
    matrices = [torch.randn(shape).bfloat16() for shape in groups]

    def chain(xs: list[Tensor], compute: torch.dtype, name: str) -> list[Tensor]:
        options = {"method": method, "compute_dtype": compute, "device": xs[0].device}
        made = Orthogonalizer(groups, resolve_coefficients("quintic", 5), **options)
        with use_backend(name):
            for _ in range(REPEATS):
                results = made.run(xs, None)
        return [x.cpu().double() for x in results]

    found = chain([x.to(device) for x in matrices], dtype, backend)
    expected = chain([x.double() for x in matrices], torch.float64, "reference")
    return max(float((x - exact).norm() / exact.norm()) for x, exact in zip(found, expected, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1, help="in how many processes they are run")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default="cuda")
    args = parser.parse_args()
    chosen = CASES[args.part :: args.parts]
    for groups, method, dtype in chosen:
        error = run(groups, method, dtype, args.device, args.backend)
        print(f"{method} {dtype} {groups}: {error:.3g}", flush=True)
        assert error < TOLERANCES[dtype]
    print(f"{len(chosen)} chains, none wrong")


if __name__ == "__main__":
    main()
