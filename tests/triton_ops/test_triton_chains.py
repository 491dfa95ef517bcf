"""Chains in Triton."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from cases import product_by_product
from triton_cases import DEVICE, INTERPRETED, MARKS, WIDE

from muon_kernels import ops
from muon_kernels.coefficients import resolve_coefficients
from muon_kernels.orthogonalize import Orthogonalizer
from muon_kernels.program import view
from muon_kernels.testing import poison

pytest.importorskip("triton")

from muon_kernels.backends.triton import gemm, gemm_add, replay, symm_gemm

pytestmark = MARKS

CONFIG = replace(WIDE, block_n=16) if INTERPRETED else WIDE
"""The interpreter takes long over tiles that lie outside the matrix, as most wide ones of these products would."""


@pytest.mark.parametrize("method", ["standard", "gram"])
def test_chains_have_the_bits_of_product_after_product(method, monkeypatch):
    """Twice, so that the plan that was kept is bound to another workspace."""
    monkeypatch.setattr(gemm, "_config", lambda *args: CONFIG)
    monkeypatch.setattr(gemm, "NARROW", CONFIG)
    groups = [(2, 16, 24), (1, 24, 16), (1, 9, 5)]
    rows = resolve_coefficients("original", 3)
    xs = [torch.randn(*group, device=DEVICE) for group in groups]
    expected = None
    by_products = partial(product_by_product, symm_gemm.symm_gemm, gemm_add.gemm_add)
    for op in (by_products, ops.chains, ops.chains):
        options = {"method": method, "compute_dtype": torch.float16, "device": torch.device(DEVICE)}
        chain = Orthogonalizer(groups, rows, factored=True, **options)
        poison(chain.workspace)
        for buffer, x in zip(chain.plan.normalised, xs, strict=True):
            view(chain.workspace, buffer).copy_(x / x.norm(dim=(1, 2), keepdim=True))
        op(chain.workspace, chain.plan.program)
        buffers = (*chain.plan.factors, *chain.plan.xs)
        results = [view(chain.workspace, buffer) for buffer in buffers if buffer is not None]
        expected = expected or results
        assert all(
            torch.equal(one, other) and one.isfinite().all() for one, other in zip(results, expected, strict=True)
        )


def test_chains_advance_in_step(monkeypatch):
    """Wide and tall matrices of one Gram size share all launches but those that X is an operand of."""
    launched = []
    monkeypatch.setattr(replay, "run", lambda launches, *rest: launched.extend(launches))
    groups = [(12, 64, 256), (12, 256, 64)]
    rows = resolve_coefficients("original", 5)
    options = {"method": "gram", "compute_dtype": torch.float16, "device": torch.device(DEVICE)}
    chain = Orthogonalizer(groups, rows, factored=True, **options)
    ops.chains(chain.workspace, chain.plan.program)
    assert sorted(launch.arguments["ENTRIES"] for launch in launched) == [1] * 6 + [2] * 14
