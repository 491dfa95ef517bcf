"""What the tests of 8-bit momenta share: parameters in every layout, and copies of all that a step may change."""

import torch
from optimizers import make_params
from torch import nn

from muon_kernels.variants import Int8Momentum

STORE = Int8Momentum()
OPTIONS = {"lr": 0.03, "weight_decay": 0.1}
CASES = [
    ((24, 40), None), ((24, 40), None), ((7, 33), None), ((1, 9), None), ((8, 4, 3, 3), "flatten"),
    ((6, 50, 2, 2), "conv_batched"), ((3, 10, 60), "batch"), ((12, 20), "transposed"), ((18, 6), "qkv"),
    ((8, 12), "grid:2x3"), ((11, 50), (4, 7)), ((5, 6), lambda t: [t[::2], t[1::2]]),
]  # fmt: skip
"""(shape, layout) of parameters: matrices of one block and of several, alone and inside others."""
SAVED = CASES[:-1]
"""Those whose layout a checkpoint holds."""


def make_cases(dtype=torch.float32, cases=CASES):
    params = make_params(dtype, [shape for shape, _ in cases])
    params[4] = nn.Parameter(params[4].detach().to(memory_format=torch.channels_last))
    return params


def groups_of(params, cases=CASES):
    return [{"params": [p], "layout": layout} for p, (_, layout) in zip(params, cases, strict=True)]


def tensors_of(optimizer):
    """Copies of all that a step may change."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [t.detach().clone() for p in params for t in (p, *optimizer.state[p].values())]


def assert_equal(a, b):
    assert len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
