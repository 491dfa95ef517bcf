"""gram-newton-schulz's names: its update by formula, its group options, its checkpoints, its scalar optimizer."""

import math

import pytest
import torch
from optimizers import make_params, run, set_grads
from torch import nn

from muon_kernels import Muon
from muon_kernels.compat import gram_newton_schulz as gns

SHAPES = [(24, 24), (40, 24), (16, 50), (3, 8, 12)]
RULES = {
    "rms_norm": lambda lr, s: lr * 0.2 * math.sqrt(max(s)),
    "spectral_norm": lambda lr, s: lr * math.sqrt(s[0] / s[1]),
    None: lambda lr, s: lr,
}


def polynomial(x, rows=gns.POLAR_EXPRESS_COEFFICIENTS, eps=1e-7):
    x = x / (x.norm() + eps)
    for a, b, c in rows:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Formula:
    """The package's step in float64: classical momentum, the update scaled matrix by matrix, decay, subtraction."""

    def __init__(self, params, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True, adjust=RULES["rms_norm"],
                 rows=gns.POLAR_EXPRESS_COEFFICIENTS, views=lambda t: list(t) if t.ndim == 3 else [t]):  # fmt: skip
        self.params = [p.detach().to(torch.float64, copy=True) for p in params]
        self.buffers = [torch.zeros_like(p) for p in self.params]
        self.lr, self.weight_decay, self.momentum, self.nesterov = lr, weight_decay, momentum, nesterov
        self.adjust, self.rows, self.views = adjust, rows, views

    def step(self, grads):
        for p, c, g in zip(self.params, self.buffers, grads, strict=True):
            c.mul_(self.momentum).add_(g)
            u = g + self.momentum * c if self.nesterov else c.clone()
            p.mul_(1 - self.lr * self.weight_decay)
            for target, matrix in zip(self.views(p), self.views(u), strict=True):
                target.sub_(self.adjust(self.lr, matrix.shape) * polynomial(matrix, self.rows))


def both(params, formula, optimizer, steps, first=0):
    for group in optimizer.param_groups:
        group["compute_dtype"] = torch.float64
    for step in range(first, first + steps):
        set_grads(params, step)
        grads = [p.grad.clone() for p in params]
        formula.step(grads)
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(params, grads, strict=True))
    for p, q in zip(params, formula.params, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-6, atol=1e-8)  # eps is added there, a bound here


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({}, {}),
        ({"nesterov": False, "momentum": 0.8, "weight_decay": 0.0}, {}),
        ({"adjust_lr": "spectral_norm"}, {"adjust": RULES["spectral_norm"]}),
        ({"adjust_lr": None}, {"adjust": RULES[None]}),
        ({"adjust_lr": lambda lr, s: lr * s[0] / 10}, {"adjust": lambda lr, s: lr * s[0] / 10}),
        ({"ns_coefficients_preset": "YOU_COEFFICIENTS"}, {"rows": gns.YOU_COEFFICIENTS}),
        ({"ns_coefficients": [[2.0, -1.5, 0.5]] * 3}, {"rows": [[2.0, -1.5, 0.5]] * 3}),
        ({"ns_algorithm": "standard_newton_schulz", "ns_use_kernels": False, "ns_max_batch_size": 2}, {}),
    ],
)
def test_update(options, same):
    params = make_params(torch.float64, SHAPES)
    common = {k: v for k, v in options.items() if k in ("nesterov", "momentum", "weight_decay")}
    formula = Formula(params, lr=0.02, **common, **same)
    both(params, formula, gns.Muon(params, lr=0.02, **options), steps=4)


def test_split_by_function():
    params = make_params(torch.float64, [(30, 10)])
    split_fn = lambda t: list(t.split([10, 10, 10]))  # noqa: E731
    group = {"params": params, "param_split_fn": split_fn, "param_recombine_fn": torch.cat, "adjust_lr": None}
    formula = Formula(params, adjust=RULES[None], views=lambda t: list(t.split(10)))
    both(params, formula, gns.Muon([group]), steps=3)


def test_split_of_a_batch():
    params = make_params(torch.float64, [(2, 12, 10)])
    halves = lambda t: list(t.chunk(2, dim=1))  # noqa: E731
    group = {"params": params, "param_split_fn": halves, "param_recombine_fn": lambda parts: torch.cat(parts, 1)}
    formula = Formula(params, views=lambda t: [m for part in t.chunk(2, dim=1) for m in part])
    both(params, formula, gns.Muon([group]), steps=3)


def test_a_checkpoint_of_the_package_continues():
    params = make_params(torch.float64, SHAPES)
    formula = Formula(params, lr=0.03, momentum=0.9, weight_decay=0.2, adjust=RULES["spectral_norm"])
    for step in range(3):
        set_grads(params, step)
        formula.step([p.grad for p in params])
    group = {"lr": 0.03, "momentum": 0.9, "weight_decay": 0.2, "nesterov": True, "adjust_lr": "spectral_norm"}
    saved = {
        "state": {i: {"momentum": c.clone()} for i, c in enumerate(formula.buffers)},
        "param_groups": [group | {"params": list(range(len(params)))}],
    }
    for p, q in zip(params, formula.params, strict=True):
        p.data.copy_(q)
    optimizer = gns.Muon(params, lr=0.5)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.03 and "momentum" in saved["state"][0]
    assert all(set(state) == {"momentum_buffer"} for state in optimizer.state.values())
    both(params, formula, optimizer, steps=3, first=3)


def test_its_own_checkpoint_continues_bitwise_with_the_scalar_optimizers_averages():
    def build(params):
        scalar = torch.optim.AdamW(params[2:], lr=0.01, betas=(0.8, 0.9), weight_decay=0.3)
        return gns.Muon(params[:2], lr=0.02, scalar_optimizer=scalar)

    params = make_params(torch.float32, [(8, 8), (12, 8), (5,), (7,)])
    optimizer = build(params)
    run(optimizer, 2)
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    other = build(copies)
    other.load_state_dict(optimizer.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(run(optimizer, 2, 2), run(other, 2, 2), strict=True))


@pytest.mark.parametrize("started", [False, True])
def test_the_scalar_optimizer_is_taken_over_with_its_state_and_follows_a_scheduler(started):
    params = make_params(torch.float32, [(8, 8), (5,), (3, 2)])
    copies = [nn.Parameter(p.detach().clone()) for p in params[1:]]
    options = {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.3}
    scalar, alone = torch.optim.AdamW(params[1:], **options), torch.optim.AdamW(copies, **options)
    if started:
        run(scalar, 2)
        run(alone, 2)
    optimizer = gns.Muon(params[:1], scalar_optimizer=scalar)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (optimizer, alone)]
    for step in range(3):
        set_grads(params, step)
        for copy, p in zip(copies, params[1:], strict=True):
            copy.grad = p.grad.clone()
        for stepped in (optimizer, alone, *schedules):
            stepped.step()
    for a, b in zip(params[1:], copies, strict=True):
        torch.testing.assert_close(a, b)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


def test_the_scalar_optimizers_names_and_first_learning_rate_are_kept():
    named = [(f"p{i}", p) for i, p in enumerate(make_params(torch.float32, [(8, 8), (5,)]))]
    scalar = torch.optim.AdamW(named[1:], lr=0.01)
    torch.optim.lr_scheduler.ConstantLR(scalar, 0.5)
    group = gns.Muon(named[:1], scalar_optimizer=scalar).param_groups[1]
    assert (group["param_names"], group["lr"], group["initial_lr"]) == (["p1"], 0.005, 0.01)


def test_a_class_for_every_algorithm():
    x = torch.randn(2, 3, 20, 8, dtype=torch.float64)
    expected = torch.stack([torch.stack([polynomial(m) for m in row]) for row in x])
    for orthogonalizer in (gns.GramNewtonSchulz(compile_kwargs=None), gns.StandardNewtonSchulz(ns_use_kernels=False)):
        result = orthogonalizer(x)
        assert result.dtype == torch.float64 and result.shape == x.shape
        # The chain runs in 16 bit or float32: measured at most 3.4e-2 of the norm in 40 draws.
        assert (result - expected).norm() < 0.07 * expected.norm()
    you = gns.GramNewtonSchulz(ns_coefficients=gns.YOU_COEFFICIENTS)(x[0, 0].float())
    assert (you.double() - polynomial(x[0, 0], gns.YOU_COEFFICIENTS)).norm() < 0.02 * you.norm()  # measured 7.4e-3
    assert isinstance(gns.Muon([nn.Parameter(torch.zeros(4, 4))]), Muon)
