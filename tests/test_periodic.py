"""Block-periodic steps against their formula in float64; resuming, and what is refused."""

import pytest
import torch
from optimizers import Float64Muon, make_params, run, set_grads

from muon_kernels import Muon
from muon_kernels.matrices import split
from muon_kernels.variants import AdaMuon, Int8Momentum

SHAPES = [(12, 8), (6, 20)]
BLOCKS = {"period": 2, "layout": "rows:2"}
EXACT = {"compute_dtype": torch.float64}


def expected(params, steps, layout, period, block_lr_scale, lr=0.1, decay=0.1):
    """Parameters after `steps` steps, by the formula."""
    oracle = Float64Muon(params)
    finals = [p.clone() for p in oracle.params]
    for step in range(steps):
        set_grads(params, step)
        for p, m, param in zip(finals, oracle.buffers, params, strict=True):
            m.mul_(0.95).add_(param.grad, alpha=0.05)
            u = 0.95 * m + 0.05 * param.grad
            whole = step % period == 0
            p.mul_(1 - lr * decay)
            for block, target in zip(*(split(t, None if whole else layout) for t in (u, p)), strict=True):
                x = orthogonalized(block)
                rows, cols = block.shape
                factor = max(1.0, rows / cols) ** 0.5 * (1.0 if whole else block_lr_scale)
                target.sub_(lr * factor * x)
    return finals


def orthogonalized(x):
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("layout", ["rows:2", "cols:4", "grid:3x2"])
@pytest.mark.parametrize(("period", "block_lr_scale"), [(1, 1.0), (3, 0.7)])
def test_formula(layout, period, block_lr_scale):
    params = make_params(torch.float64, SHAPES)
    wanted = expected(params, 7, layout, period, block_lr_scale)
    options = {"layout": layout, "period": period, "block_lr_scale": block_lr_scale}
    for result, one in zip(run(Muon(params, lr=0.1, **options, **EXACT), 7), wanted, strict=True):
        torch.testing.assert_close(result, one, rtol=1e-9, atol=1e-12)


def test_a_resumed_run_continues_the_period():
    params, others = make_params(torch.float32, SHAPES), make_params(torch.float32, SHAPES)
    options = {"layout": "rows:2", "period": 3}
    optimizer, resumed = Muon(params, lr=0.1, **options), Muon(others, lr=0.1, **options)
    run(optimizer, 2)
    with torch.no_grad():
        for p, q in zip(others, params, strict=True):
            p.copy_(q)
    resumed.load_state_dict(optimizer.state_dict())
    for one, other in zip(run(optimizer, 3, first=2), run(resumed, 3, first=2), strict=True):
        assert torch.equal(one, other)


def test_a_step_without_gradients_does_not_count():
    params = make_params(torch.float32, SHAPES)
    optimizer = Muon(params, layout="rows:2", period=3)
    for _ in range(2):
        optimizer.step()
    assert "step_of_period" not in optimizer.param_groups[0]
    run(optimizer, 4)
    assert optimizer.param_groups[0]["step_of_period"] == 1


def test_explain_shows_both_kinds_of_step():
    table = Muon(make_params(torch.float32, [(12, 8)]), layout="rows:3", period=5, block_lr_scale=0.5).explain()
    assert "3 x 4x8; every 5 steps 1 x 12x8  0.5; 1.225" in table


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"period": 0, "layout": "rows:2"}, ValueError, "period must be >= 1, got 0"),
        ({"period": 2.0, "layout": "rows:2"}, TypeError, "period must be None or an integer, got 2.0"),
        ({"period": True, "layout": "rows:2"}, TypeError, "period must be None or an integer, got True"),
        ({"period": 2}, ValueError, "period needs a layout that cuts a 2-D parameter into blocks, got None"),
        ({"period": 2, "layout": "flatten"}, ValueError, "period needs a layout .*got 'flatten'"),
        (BLOCKS | {"normalizer": AdaMuon()}, ValueError, "normalizer must be None with a period, got AdaMuon"),
        (
            BLOCKS | {"momentum_store": Int8Momentum()},
            ValueError,
            "momentum_store must be None with a period, got Int8",
        ),
        (BLOCKS | {"rounding": "stochastic"}, ValueError, "rounding must be 'nearest' with a period, got 'stochastic'"),
        ({"block_lr_scale": 0.5}, ValueError, "block_lr_scale must be 1.0 without a period, got 0.5"),
        (
            BLOCKS | {"block_lr_scale": 0.0},
            ValueError,
            "block_lr_scale must be > 0 and finite, got 0.0",
        ),
    ],
)
def test_what_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        Muon(make_params(torch.float32, SHAPES), **options)


def test_a_function_as_layout_needs_2d_parameters_too():
    stacked = torch.nn.Parameter(torch.zeros(3, 4, 5))
    with pytest.raises(ValueError, match="Muon only supports 2D parameters"):
        Muon([stacked], layout=lambda t: list(t.unbind(0)), period=2)
