"""QK-clip on a tiny attention: heads above the bound come down to it, nothing else moves."""

import math

import pytest
import torch
from torch import nn

from muon_kernels import Muon
from muon_kernels.variants import QKClip

HEADS, DIM, WIDTH = 3, 4, 6
ROWS = HEADS * DIM


def logits(x, weights, biases):
    q, k = ((x @ w.T + b).view(-1, HEADS, DIM).transpose(0, 1) for w, b in zip(weights, biases, strict=True))
    return q @ k.mT / math.sqrt(DIM)


@pytest.mark.parametrize("fused", [False, True])
def test_heads_above_the_bound_come_down_to_it(fused):
    weight = nn.Parameter(torch.randn(3 * ROWS, WIDTH, dtype=torch.float64))
    bias = nn.Parameter(torch.randn(3 * ROWS, dtype=torch.float64))
    wq, wk, wv = weight.detach().chunk(3)
    bq, bk, _ = bias.detach().chunk(3)
    if not fused:
        wq, wk, wv, bq, bk = (t.clone() for t in (wq, wk, wv, bq, bk))
    x = torch.randn(10, WIDTH, dtype=torch.float64)
    before, value = logits(x, (wq, wk), (bq, bk)), wv.clone()
    largest = before.amax((1, 2))
    tau = largest.float().sort().values[1].item()  # one head exceeds it
    clip = QKClip([wq, bq], [wk, bk], heads=HEADS, tau=tau)
    clip.observe(largest / 2)
    clip.observe(largest)
    clip()
    after = logits(x, (wq, wk), (bq, bk))
    factors = (tau / largest).clamp(max=1.0)
    torch.testing.assert_close(after, before * factors[:, None, None], rtol=1e-6, atol=1e-6)
    assert factors.min() < 1 and torch.equal(wv, value)
    kept = after.clone()
    clip()  # nothing observed since
    assert torch.equal(logits(x, (wq, wk), (bq, bk)), kept)


@pytest.mark.parametrize("master_dtype", [None, torch.float32])
def test_as_a_hook_of_an_optimizer(master_dtype):
    dtype = torch.float32 if master_dtype is None else torch.bfloat16
    weight = nn.Parameter(torch.randn(3 * ROWS, WIDTH).to(dtype))
    twin = nn.Parameter(weight.detach().clone())
    optimizers = [Muon([p], lr=0.1, layout="qkv", master_dtype=master_dtype) for p in (weight, twin)]
    query, key, _ = weight.detach().chunk(3)
    clip = QKClip([query], [key], heads=HEADS, tau=25.0)
    optimizers[0].register_step_post_hook(clip)
    weight.grad = torch.randn_like(weight)
    twin.grad = weight.grad.clone()
    clip.observe(torch.tensor([100.0, 25.0, math.inf]))
    for optimizer in optimizers:
        optimizer.step()
    expected = twin.detach().clone()
    expected[:DIM] *= 0.5
    expected[ROWS : ROWS + DIM] *= 0.5
    assert torch.equal(weight.detach(), expected)
    weight.grad = torch.zeros_like(weight)
    optimizers[0].param_groups[0].update(lr=0.0)
    optimizers[0].step()
    assert torch.equal(weight.detach(), expected)  # a master copy does not bring it back


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, "heads must be >= 1, got 0"),
        ({"heads": 5}, r"query must hold \[heads \* dim, ...\] with 5 heads, got shape \[12, 6\]"),
        ({"tau": 0.0}, "tau must be > 0 and finite, got 0.0"),
        ({"tau": math.nan}, "tau must be > 0 and finite, got nan"),
        ({"query": []}, "query must hold at least one tensor, got none"),
        ({"key": [torch.zeros(HEADS, WIDTH)]}, r"must have equally many rows, got \[12\] and \[3\]"),
        ({"key": [torch.zeros(2, 6, 6)]}, r"key must hold .*got shape \[2, 6, 6\]"),
    ],
)
def test_values_out_of_range(options, message):
    good = {"query": [torch.zeros(ROWS, WIDTH)], "key": [torch.zeros(ROWS, WIDTH)], "heads": HEADS}
    with pytest.raises(ValueError, match=message):
        QKClip(**good | options)


def test_what_several_ranks_share_is_refused():
    sharded = torch.zeros(ROWS, WIDTH)
    sharded.placements = ()  # what a DTensor has and a tensor has not
    with pytest.raises(TypeError, match=r"key must hold plain tensors, got a DTensor of shape \[12, 6\]"):
        QKClip([torch.zeros(ROWS, WIDTH)], [sharded], heads=HEADS)


def test_logits_of_another_shape_change_nothing():
    query, key = torch.ones(ROWS, WIDTH), torch.ones(ROWS, WIDTH)
    clip = QKClip([query], [key], heads=HEADS)
    with pytest.raises(ValueError, match=r"max_logits must have shape \[3\], got \[2\]"):
        clip.observe(torch.full((2,), 1e4))
    clip()
    assert query.eq(1).all() and key.eq(1).all()
