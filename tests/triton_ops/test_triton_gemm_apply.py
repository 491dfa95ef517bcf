"""gemm_apply in Triton: every bit is that of a product and then apply."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from cases import LAYOUTS, general_products, in_layout
from triton_cases import (
    DEVICE,
    INTERPRETED,
    MARKS,
    PRODUCT_DTYPES,
    SQUARE,
    SQUARE_DESCRIBED,
    WIDE,
    WIDE_DESCRIBED,
    in_rows_of_16,
)

from muon_kernels import ops

pytest.importorskip("triton")

from muon_kernels.backends.products import stored_first
from muon_kernels.backends.triton import apply, gemm, gemm_add, gemm_apply
from muon_kernels.backends.triton.elementwise import MAX_TENSORS
from muon_kernels.backends.triton.launch import run

pytestmark = MARKS

PIECES = replace(WIDE, block_n=256)
"""Whose tiles are handed to the parameters in pieces."""
STEPPED = (
    [
        (torch.float16, torch.float32, False, PIECES),
        (torch.float16, torch.float16, True, None),
        (torch.float32, torch.float32, True, PIECES),
    ]
    if INTERPRETED
    else list(product(PRODUCT_DTYPES, [torch.float32, torch.bfloat16, torch.float16], [False, True], [None, PIECES]))
)
"""(dtype of the products, dtype of the parameters, learning rate on the device, configuration forced on all shapes)"""


def params_for(a, b, dtype, layouts):
    """One parameter a matrix of the products."""
    shapes = [(left.shape[1], right.shape[2]) for left, right in zip(a, b, strict=True) for _ in left]
    return [
        in_layout(torch.randn(shape, device=DEVICE).to(dtype), layouts[i % len(layouts)])
        for i, shape in enumerate(shapes)
    ]


def whole(param):
    return param if param._base is None else param._base


def check_gemm_apply(a, b, params, *, lr=0.3, scales=None, found_inf=None):
    """Every bit, also beside the parameters, is that of a product and then apply."""
    expected = [whole(p).clone().as_strided(p.shape, p.stride(), p.storage_offset()) for p in params]
    lr = lr if isinstance(lr, torch.Tensor) else torch.tensor(lr)
    options = {"lr": lr, "weight_decay": 0.1, "scales": scales or [1.5] * len(params), "found_inf": found_inf}
    stored_first(gemm_add.gemm_add, apply.apply)(a, b, expected, **options)
    before = [p.clone() for p in params]
    ops.gemm_apply(a, b, params, **options)
    for mine, other, old in zip(params, expected, before, strict=True):
        assert mine.isfinite().all() and not torch.equal(mine, old)
        torch.testing.assert_close(whole(mine), whole(other), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("dtype", "param_dtype", "on_device", "forced"), STEPPED)
def test_gemm_apply(dtype, param_dtype, on_device, forced, monkeypatch):
    if forced is not None:
        monkeypatch.setattr(gemm, "_config", lambda *args: forced)
    p = general_products(dtype, DEVICE, with_c=False)
    params = params_for(p.a, p.b, param_dtype, LAYOUTS)
    scales = [0.5 + i // 2 % 3 for i in range(len(params))]
    lr = torch.tensor(0.3)
    found_inf = None
    if on_device:
        lr = lr.to(DEVICE)
        found_inf = torch.zeros(1, device=DEVICE)
        monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    check_gemm_apply(p.a, p.b, params, lr=lr, scales=scales, found_inf=found_inf)


def test_gemm_apply_with_more_parameters_and_entries_than_one_launch_takes(monkeypatch):
    launched = []
    monkeypatch.setattr(gemm_apply, "run", lambda launches, device: launched.extend(launches) or run(launches, device))
    xs = [torch.randn(1, 8, 17 + i, device=DEVICE).half() for i in range(gemm.MAX_ENTRIES + 3)]
    xs.append(torch.randn(MAX_TENSORS + 6, 3, 5, device=DEVICE).half())
    factors = [torch.randn(len(x), *[x.shape[1]] * 2, device=DEVICE).half() for x in xs]
    check_gemm_apply(factors, xs, params_for(factors, xs, torch.float32, ["contiguous"]))
    assert [launch.arguments["ENTRIES"] for launch in launched] == [gemm.MAX_ENTRIES, 3, 1, 1]


@pytest.mark.parametrize("config", [replace(SQUARE_DESCRIBED, block_n=128), WIDE_DESCRIBED])
def test_gemm_apply_through_tensor_descriptors(config, monkeypatch):
    if not INTERPRETED and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs tensor descriptors")
    monkeypatch.setattr(gemm, "_card", lambda device: (90, 2))
    monkeypatch.setattr(gemm, "_config", lambda *args: config)
    xs = [in_rows_of_16(torch.randn(shape, device=DEVICE).half()) for shape in [(2, 67, 41), (1, 33, 185), (3, 17, 50)]]
    xs.append(in_rows_of_16(torch.randn(2, 50, 35, device=DEVICE).half()).mT)
    factors = [in_rows_of_16(torch.randn(len(x), *[x.shape[1]] * 2, device=DEVICE).half()) for x in xs]
    params = params_for(factors, xs, torch.float32, LAYOUTS)
    options = {"lr": torch.tensor(0.3), "weight_decay": 0.1, "scales": [1.5] * len(params), "found_inf": None}
    launches = gemm_apply.plan(factors, xs, params, **options)
    assert {launch.arguments["PROGRAMS"] for launch in launches} == {config.programs}
    check_gemm_apply(factors, xs, params)


def test_gemm_apply_found_inf_changes_nothing():
    a = torch.full((2, 16, 16), torch.nan, device=DEVICE).half()
    params = [torch.randn(16, 16, device=DEVICE) for _ in range(2)]
    before = [p.clone() for p in params]
    ops.gemm_apply([a], [a], params, lr=0.1, scales=[1.0] * 2, found_inf=torch.ones(1, device=DEVICE))
    assert all(map(torch.equal, params, before))


def test_gemm_apply_without_terms():
    """k = 0 leaves the decay; empty parameters are nobody's business."""
    a, b = torch.empty(2, 5, 0, device=DEVICE).half(), torch.empty(2, 0, 3, device=DEVICE).half()
    params = [torch.ones(5, 3, device=DEVICE) for _ in range(2)]
    ops.gemm_apply([a], [b], params, lr=0.5, weight_decay=0.5, scales=[1.0] * 2)
    assert all((p == 0.75).all() for p in params)
    ops.gemm_apply([a[:, :0]], [b], [p[:0] for p in params], lr=0.5, scales=[1.0] * 2)
    ops.gemm_apply([a[:0]], [b[:0]], [], lr=0.5, scales=[])


def test_parameters_that_look_alike_share_a_launch(monkeypatch):
    """Others than in scale or strides, of any number of entries, are entries of it; others in memory order are not."""
    monkeypatch.setattr(gemm, "_config", lambda *args: SQUARE)
    xs = [torch.empty(n, 64, 64, dtype=torch.float16, device=DEVICE) for n in (3, 2, 4)]
    params = params_for(xs, xs, torch.float32, ["contiguous"])
    params[8] = in_layout(params[8], "transposed")
    options = {"lr": torch.tensor(0.3), "weight_decay": 0.1, "scales": [1.0] * 2 + [2.0] * 7, "found_inf": None}
    launches = gemm_apply.plan(xs, xs, params, **options)
    assert [(launch.arguments["ENTRIES"], len(launch.arguments["parameters"])) for launch in launches] == [
        (4, 8),
        (1, 1),
    ]
