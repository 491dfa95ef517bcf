"""What the tests in triton_ops/ share: devices, dtypes, tolerances, configurations and operands."""

import os
from dataclasses import replace

import pytest
import torch

from muon_kernels.backends.configs import GemmConfig

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float16, torch.float32] if INTERPRETED else [torch.float16, torch.bfloat16, torch.float32]
PRODUCT_DTYPES = DTYPES if INTERPRETED else [torch.float16, torch.bfloat16]
"""On a device float32 products are refused."""
FLOOR = {torch.float16: 1e-4, torch.bfloat16: 1e-3, torch.float32: 1e-6}
"""A tenth of the dtype's unit roundoff, for float32 ten: sums may be taken in another order than torch's."""

MARKS = [] if INTERPRETED else [pytest.mark.gpu]

SQUARE = GemmConfig(block_m=64, block_n=64, block_k=32, warps=4, stages=2, group=2)
WIDE = GemmConfig(block_m=16, block_n=64, block_k=16, warps=4, stages=2, group=4)
LONG_STEP = GemmConfig(block_m=128, block_n=128, block_k=64, warps=8, stages=2, group=1)
SQUARE_DESCRIBED, WIDE_DESCRIBED = (
    (replace(SQUARE, block_m=16, block_n=16, programs=1), replace(WIDE, block_n=32, programs=2))
    if INTERPRETED
    else (replace(LONG_STEP, programs=1), replace(LONG_STEP, block_m=64, programs=2))
)


def in_rows_of_16(x):
    """A copy in rows as a tensor descriptor takes them, with NaN between them."""
    storage = x.new_full((*x.shape[:2], -(-x.shape[2] // 16) * 16 + 16), torch.nan)
    return storage[:, :, : x.shape[2]].copy_(x)
