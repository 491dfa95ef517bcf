"""Keller Jordan's names: the update by his formula, without what his classes do to gradients and inputs."""

import math

import pytest
import torch
from optimizers import make_params, run, set_grads
from torch import nn

from muon_kernels.compat import from_keller_jordan, keller_jordan, merge_ranks

STEPS = 6
SHAPES = [(24, 24), (40, 24), (16, 50), (12, 4, 3, 3)]


class Formula:
    """His step in float64: the norm raised by 1e-7, Adam's averages with a step that counts from 1."""

    def __init__(self, params, lr=0.02, weight_decay=0.0, momentum=0.95, betas=None, eps=1e-10):
        self.params = [p.detach().to(torch.float64, copy=True) for p in params]
        self.state = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.params]
        self.lr, self.weight_decay, self.momentum, self.betas, self.eps = lr, weight_decay, momentum, betas, eps
        self.count = 0

    def step(self, grads):
        self.count += 1
        for p, (m, v), g in zip(self.params, self.state, grads, strict=True):
            g = g.double()
            p.mul_(1 - self.lr * self.weight_decay)
            p.sub_(self.lr * (self._adam(m, v, g) if self.betas else self._muon(m, g)))

    def _muon(self, m, g):
        m.copy_(self.momentum * m + (1 - self.momentum) * g)
        x = ((1 - self.momentum) * g + self.momentum * m).flatten(1)
        x = x / (x.norm() + 1e-7)
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        return (x * math.sqrt(max(1, x.shape[0] / x.shape[1]))).view(g.shape)

    def _adam(self, m, v, g):
        b1, b2 = self.betas
        m.copy_(b1 * m + (1 - b1) * g)
        v.copy_(b2 * v + (1 - b2) * g * g)
        return m / (1 - b1**self.count) / ((v / (1 - b2**self.count)).sqrt() + self.eps)


def exactly(optimizer):
    for group in optimizer.param_groups:
        group["compute_dtype"] = torch.float64
    return optimizer


def assert_same(params, formula):
    for p, q in zip(params, formula.params, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-7, atol=1e-8)  # eps is added there, a bound here


@pytest.mark.parametrize("options", [{}, {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.8}])
@pytest.mark.parametrize("name", ["Muon", "SingleDeviceMuon"])
def test_muon(name, options):
    params = make_params(torch.float64, SHAPES)
    formula = Formula(params, **options)
    optimizer = exactly(getattr(keller_jordan, name)(params, **options))
    for step in range(STEPS):
        set_grads(params, step)
        grads = [p.grad.clone() for p in params]
        formula.step(grads)
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(params, grads, strict=True))
    assert_same(params, formula)


@pytest.mark.parametrize("name", ["MuonWithAuxAdam", "SingleDeviceMuonWithAuxAdam"])
def test_with_aux_adam(name):
    params = make_params(torch.float64, [*SHAPES, (7,), (5, 3)])
    matrices, others = params[:4], params[4:]
    groups = [
        {"params": others, "use_muon": False, "lr": 0.05, "weight_decay": 0.1},
        {"params": matrices, "use_muon": True},
    ]
    optimizer = exactly(getattr(keller_jordan, name)(groups))
    assert [optimizer.param_groups[0][key] for key in ("betas", "eps")] == [(0.9, 0.95), 1e-10]
    assert set(groups[1]) == {"params", "use_muon"} and groups[1]["params"] is matrices
    formulas = [Formula(matrices), Formula(others, lr=0.05, weight_decay=0.1, betas=(0.9, 0.95))]
    for step in range(STEPS):
        set_grads(params, step)
        for formula, members in zip(formulas, (matrices, others), strict=True):
            formula.step([p.grad for p in members])
        optimizer.step()
    assert_same(matrices, formulas[0])
    assert_same(others, formulas[1])


def test_a_parameter_without_a_gradient_stays():
    params = make_params(torch.float32, [(8, 8), (8, 8)])
    optimizer = keller_jordan.SingleDeviceMuon(params, weight_decay=0.5)
    set_grads(params, 0)
    params[0].grad, before = None, params[0].detach().clone()
    optimizer.step()
    assert torch.equal(params[0], before) and params[0].grad is None and params[0] not in optimizer.state


def test_three_dimensions_are_a_batch():
    batch = make_params(torch.float64, [(3, 8, 6)])
    parts = [nn.Parameter(m.detach().clone()) for m in batch[0]]
    optimizers = [exactly(keller_jordan.SingleDeviceMuon(p)) for p in (batch, parts)]
    set_grads(batch, 0)
    for part, grad in zip(parts, batch[0].grad, strict=True):
        part.grad = grad.clone()
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(batch[0].detach(), torch.stack(parts).detach(), rtol=1e-12, atol=0)


def test_the_distributed_classes_sort_by_size():
    params = make_params(torch.float32, [(8, 4), (16, 4), (8, 6)])
    assert [tuple(p.shape) for p in keller_jordan.Muon(params).param_groups[0]["params"]] == [(16, 4), (8, 6), (8, 4)]
    optimizer = keller_jordan.MuonWithAuxAdam([{"params": params, "use_muon": True}])
    assert [tuple(p.shape) for p in optimizer.param_groups[0]["params"]] == [(16, 4), (8, 6), (8, 4)]


def test_functions():
    g, m = torch.randn(12, 30, dtype=torch.float64), torch.randn(12, 30, dtype=torch.float64)
    x = g / (g.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    orthogonal = keller_jordan.zeropower_via_newtonschulz5(g.expand(2, 12, 30), 5)
    assert orthogonal.dtype == torch.bfloat16 and orthogonal.shape == (2, 12, 30)
    # bfloat16: five steps of rounding to 2^-9; measured at most 2.2e-2 of the norm in 40 draws.
    assert (orthogonal[1].double() - x).norm() < 0.05 * x.norm()
    for nesterov in (True, False):
        formula = Formula([torch.zeros(12, 30)], momentum=0.9 if nesterov else 0.0)
        formula.state[0][0].copy_(m)
        mine, grad = m.clone(), g.clone()
        expected = formula._muon(formula.state[0][0], g)
        if nesterov:
            update = keller_jordan.muon_update(grad, mine, beta=0.9)
            assert torch.allclose(mine, formula.state[0][0])
        else:
            update = keller_jordan.muon_update(grad, mine, beta=0.0, nesterov=False)
        assert torch.equal(grad, g) and (update.double() - expected).norm() < 0.05 * expected.norm()
    buffers = [torch.zeros(12, 30, dtype=torch.float64) for _ in range(2)]
    formula = Formula([torch.zeros(12, 30)], betas=(0.9, 0.95))
    for formula.count in (1, 2):
        update = keller_jordan.adam_update(g, *buffers, formula.count, (0.9, 0.95), 1e-10)
        torch.testing.assert_close(update, formula._adam(*formula.state[0], g))


def checkpoint_of(formulas, params_per_group):
    """What his classes save: average, or Adam's averages with an integer step; groups without our options."""
    state, groups, i = {}, [], 0
    for f, count in zip(formulas, params_per_group, strict=True):
        options = {"lr": f.lr, "weight_decay": f.weight_decay, "use_muon": f.betas is None}
        options |= {"momentum": f.momentum} if f.betas is None else {"betas": f.betas, "eps": f.eps}
        groups.append(options | {"params": list(range(i, i + count))})
        for m, v in f.state:
            adam = {"exp_avg": m.clone(), "exp_avg_sq": v.clone(), "step": f.count}
            state[i] = adam if f.betas else {"momentum_buffer": m.clone()}
            i += 1
    return {"state": state, "param_groups": groups}


def test_his_checkpoint_continues():
    params = make_params(torch.float64, [*SHAPES, (7,)])
    formulas = [Formula(params[:4], lr=0.05), Formula(params[4:], lr=0.01, betas=(0.8, 0.9))]
    for step in range(3):
        set_grads(params, step)
        formulas[0].step([p.grad for p in params[:4]])
        formulas[1].step([params[4].grad])
    saved = checkpoint_of(formulas, (4, 1))
    optimizer = keller_jordan.SingleDeviceMuonWithAuxAdam(
        [{"params": params[:4], "use_muon": True}, {"params": params[4:], "use_muon": False}]
    )
    for p, q in zip(params, formulas[0].params + formulas[1].params, strict=True):
        p.data.copy_(q)
    optimizer.load_state_dict(saved)
    assert saved["state"][4]["step"] == 3 and isinstance(saved["state"][4]["step"], int)
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.01]
    exactly(optimizer)
    for step in range(3, 6):
        set_grads(params, step)
        formulas[0].step([p.grad for p in params[:4]])
        formulas[1].step([params[4].grad])
        optimizer.step()
    assert_same(params[:4], formulas[0])
    assert_same(params[4:], formulas[1])
    again = optimizer.state_dict()
    assert from_keller_jordan(again)["state"][4]["step"] is again["state"][4]["step"]


def test_checkpoints_of_several_ranks_are_one():
    params = make_params(torch.float32, [(8, 8)] * 3)
    optimizer = keller_jordan.SingleDeviceMuon(params)
    run(optimizer, 1)
    whole = optimizer.state_dict()
    ranks = [whole | {"state": {i: s for i, s in whole["state"].items() if i % 2 == rank}} for rank in range(2)]
    merged = merge_ranks(ranks)
    assert sorted(merged["state"]) == [0, 1, 2] and merged["param_groups"] == whole["param_groups"]
    with pytest.raises(ValueError, match=r"no rank holds a state of parameters \[1\]"):
        merge_ranks(ranks[:1])
    with pytest.raises(ValueError, match="the groups of rank 1 differ"):
        merge_ranks([whole, keller_jordan.SingleDeviceMuon(params[:2]).state_dict()])
    with pytest.raises(ValueError, match="at least one state dict"):
        merge_ranks([])
