"""Groups with use_muon=False: torch's own AdamW and NAdam, in the same optimizer."""

import pytest
import torch
from optimizers import make_params, run, set_grads
from torch import nn

from muon_kernels import Muon

AUX_SHAPES = [(10,), (3, 4, 5), (), (8, 3)]


def both(dtype=torch.float32):
    return make_params(dtype), make_params(dtype, AUX_SHAPES, seed=7)


@pytest.mark.parametrize("flag", [{"use_muon": False}, {"use_fallback": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adamw(dtype, flag):
    matrices, others = both(dtype)
    options = {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.3}
    optimizer = Muon([{"params": matrices}, {"params": others, **flag, **options}], lr=0.1)
    reference_params = make_params(dtype, AUX_SHAPES, seed=7)
    reference = torch.optim.AdamW(reference_params, **options, fused=True)
    matrices_alone = make_params(dtype)
    alone = Muon(matrices_alone, lr=0.1)
    for step in range(4):
        set_grads(matrices, step)
        set_grads(matrices_alone, step)
        set_grads(others, step)
        set_grads(reference_params, step)
        for o in (optimizer, reference, alone):
            o.step()
    assert all(torch.equal(a, b) for a, b in zip(others, reference_params, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(matrices, matrices_alone, strict=True))


def test_nadam():
    others, reference_params = (make_params(torch.float32, AUX_SHAPES, seed=7) for _ in range(2))
    options = {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.3}
    ours = run(Muon([{"params": others, "use_muon": False, "algorithm": "nadam", **options}]), 4)
    theirs = run(torch.optim.NAdam(reference_params, **options, decoupled_weight_decay=True), 4)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_defaults():
    optimizer = Muon([{"params": [nn.Parameter(torch.zeros(3))], "use_muon": False}], lr=0.3, weight_decay=0.2)
    group = optimizer.param_groups[0]
    assert (group["algorithm"], group["betas"], group["eps"]) == ("adamw", (0.9, 0.95), 1e-8)
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.2)


def test_the_group_follows_its_scheduler():
    (p,) = make_params(torch.float32, [(5,)])
    optimizer = Muon([{"params": [p], "use_muon": False, "lr": 0.1, "weight_decay": 0.0}])
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.0)
    before = p.detach().clone()
    run(optimizer, 1)
    assert torch.equal(p, before)


@pytest.mark.parametrize("algorithm", ["adamw", "nadam"])
@pytest.mark.parametrize("found_inf", [False, True])
def test_grad_scaler(algorithm, found_inf):
    scaled, plain = (make_params(torch.float32, AUX_SHAPES, seed=7) for _ in range(2))
    optimizer, reference = (Muon([{"params": p, "use_muon": False, "algorithm": algorithm}]) for p in (scaled, plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    scaler.scale(torch.zeros((), requires_grad=True))
    set_grads(scaled, 0, scale=256.0)
    set_grads(plain, 0)
    if found_inf:
        scaled[1].grad.fill_(torch.inf)
    before, grads = [p.detach().clone() for p in scaled], [p.grad.clone() for p in scaled]
    scaler.step(optimizer)
    reference.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(scaled, grads, strict=True))
    expected = before if found_inf else plain
    assert all(torch.equal(a, b) for a, b in zip(scaled, expected, strict=True))


def test_state_round_trip():
    matrices, others = both()
    groups = [{"params": matrices}, {"params": others, "use_muon": False, "algorithm": "nadam"}]
    optimizer = Muon(groups, lr=0.1)
    run(optimizer, 2)
    copies = [
        {**g, "params": [nn.Parameter(p.detach().clone()) for p in g["params"]]}
        for g in ({"params": matrices}, {"params": others, "use_muon": False, "algorithm": "nadam"})
    ]
    other = Muon(copies, lr=0.7)
    other.load_state_dict(optimizer.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(run(optimizer, 2, first=2), run(other, 2, first=2), strict=True))


@pytest.mark.parametrize("options", [{}, {"rounding": "stochastic"}, {"master_dtype": torch.float32}])
@pytest.mark.parametrize("algorithm", ["adamw", "nadam"])
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_gradients_and_averages_that_lie_otherwise(order, algorithm, options):
    """torch's fused kernels would pair elements by where they lie."""
    start, grads = torch.randn(4, 3, 2, 2).bfloat16(), [torch.randn(4, 3, 2, 2).bfloat16() for _ in range(3)]
    ends = []
    for lies in (torch.channels_last, torch.contiguous_format):
        p = nn.Parameter(start.to(memory_format=lies, copy=True))
        optimizer = Muon([{"params": [p], "use_muon": False, "algorithm": algorithm}], lr=0.1, **options)
        for i, grad in enumerate(grads):
            p.grad = grad.to(memory_format=order)
            optimizer.step()
            if i == 1:  # a checkpoint of a model that lies otherwise
                saved = optimizer.state_dict()
                for key in ("exp_avg", "exp_avg_sq"):
                    saved["state"][0][key] = saved["state"][0][key].to(memory_format=order, copy=True)
                optimizer.load_state_dict(saved)
        ends.append(p.detach())
    assert torch.equal(*ends) and not torch.equal(ends[0], start)
