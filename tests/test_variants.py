"""Normalisers and weight-decay rules: their formulas in float64, alone, together and with every other option."""

import copy
import io
import math
import pickle

import pytest
import torch
from optimizers import Float64Muon, make_params, run
from torch import nn

from muon_kernels import Muon
from muon_kernels.compat import load_by_parameter
from muon_kernels.matrices import split, step_factor
from muon_kernels.variants import AdaMuon, NorMuon

NORMALIZERS = [NorMuon(), NorMuon(beta2=0.8, eps=1e-3), AdaMuon(), AdaMuon(beta2=0.8, eps=1e-3)]
VARIANTS = [(n, rule) for n in [None, *NORMALIZERS] for rule in ("decoupled", "cautious")][1:]
OPTIONS = {"lr": 0.03, "weight_decay": 0.5}
FLOAT64 = {"compute_dtype": torch.float64, "method": "standard"}
CASES = [
    ((24, 16), None), ((24, 16), None), ((7, 33), None), ((9, 1), None), ((1, 9), None), ((8, 4, 3, 3), "flatten"),
    ((6, 5, 2, 2), "conv_batched"), ((3, 10, 6), "batch"), ((12, 20), "transposed"), ((18, 6), "qkv"),
    ((8, 12), "grid:2x3"), ((11, 5), (4, 7)),
]  # fmt: skip
"""(shape, layout) of parameters: equal shapes that share a batch, units, tall and wide, and matrices inside others."""


class Float64Variant(Float64Muon):
    """The formulas, one matrix at a time."""

    def __init__(self, matrices, factors, normalizer, rule, **options):
        super().__init__(matrices, **options)
        self.factors, self.normalizer, self.rule = factors, normalizer, rule
        self.moments = [torch.zeros(1, dtype=torch.float64) for _ in matrices]

    def step(self, grads):
        for i, (p, m, g) in enumerate(zip(self.params, self.buffers, grads, strict=True)):
            u = self.orthogonalized(m, g.double())
            if self.normalizer is not None:
                squares = u**2
                if isinstance(self.normalizer, NorMuon):
                    squares = squares.sum(1, keepdim=True) / u.shape[1]
                beta = self.normalizer.beta2
                self.moments[i] = beta * self.moments[i] + (1 - beta) * squares
                scaled = u / (self.moments[i] ** 0.5 + self.normalizer.eps)
                u = scaled * (u.norm() / scaled.norm())
            kept = (u * p >= 0).double() if self.rule == "cautious" else 1.0
            rate = self.lr * math.sqrt(max(1, p.shape[0] / p.shape[1])) * self.factors[i]
            p.copy_(p - self.lr * self.weight_decay * kept * p - rate * u)


def groups_of(params, cases=CASES):
    return [{"params": [p], "layout": layout} for p, (_, layout) in zip(params, cases, strict=True)]


def make_cases(dtype):
    params = make_params(dtype, [shape for shape, _ in CASES])
    params[5] = nn.Parameter(params[5].detach().to(memory_format=torch.channels_last))
    return params


def tensors_of(optimizer):
    """Copies of all that a step may change."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [t.detach().clone() for p in params for t in (p, *optimizer.state[p].values())]


def assert_equal(a, b):
    assert len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("max_bytes", [None, 2**12])
@pytest.mark.parametrize(("normalizer", "rule"), VARIANTS)
def test_the_formula_in_float64(normalizer, rule, max_bytes):
    params = make_cases(torch.float64)
    matrices = [m for p, (_, layout) in zip(params, CASES, strict=True) for m in split(p.detach(), layout)]
    factors = [step_factor(p.shape, layout) for p, (_, layout) in zip(params, CASES, strict=True)
               for _ in split(p.detach(), layout)]  # fmt: skip
    reference = Float64Variant(matrices, factors, normalizer, rule, **OPTIONS)
    optimizer = Muon(groups_of(params), normalizer=normalizer, weight_decay_rule=rule, max_workspace_bytes=max_bytes,
                     **OPTIONS, **FLOAT64)  # fmt: skip
    for _ in range(10):
        for p in params:
            p.grad = torch.randn_like(p)
        grads = [p.grad.clone(memory_format=torch.preserve_format) for p in params]
        optimizer.step()
        assert_equal([p.grad for p in params], grads)
        reference.step([m for g, (_, layout) in zip(grads, CASES, strict=True) for m in split(g, layout)])
    for ours, exact in zip(matrices, reference.params, strict=True):
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_the_norm_of_the_update_is_kept(normalizer):
    start = make_params(torch.float64)
    plain, normalized = ([nn.Parameter(p.detach().clone()) for p in start] for _ in range(2))
    for params, option in ((plain, None), (normalized, normalizer)):
        run(Muon(params, lr=1.0, weight_decay=0.0, momentum=0.0, normalizer=option, **FLOAT64), 1)
    for p, q, old in zip(plain, normalized, start, strict=True):
        torch.testing.assert_close((p - old).norm(), (q - old).norm(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("normalizer", "rule"), VARIANTS)
def test_without_a_gradient_direction_nothing_moves(normalizer, rule):
    (p,) = params = make_params(torch.float32, [(6, 4)])
    start = p.detach().clone()
    optimizer = Muon(params, lr=0.1, weight_decay=0.0, normalizer=normalizer, weight_decay_rule=rule)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(p.detach(), start)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_rows_without_a_gradient_stay(normalizer):
    (p,) = params = make_params(torch.float64, [(6, 4)])
    start = p.detach().clone()
    optimizer = Muon(params, lr=0.1, weight_decay=0.0, normalizer=normalizer, **FLOAT64)
    for _ in range(3):
        p.grad = torch.randn_like(p)
        p.grad[2:4] = 0
        optimizer.step()
    assert torch.equal(p.detach()[2:4], start[2:4])
    assert p.isfinite().all() and not torch.equal(p.detach(), start)


def test_cautious_decay_where_signs_agree_alone():
    p = nn.Parameter(torch.tensor([[2.0, -2.0], [-4.0, 4.0]], dtype=torch.float64))
    optimizer = Muon([p], lr=0.5, weight_decay=0.25, weight_decay_rule="cautious", adjust_lr_fn=lambda shape: 0.0)
    p.grad = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    optimizer.step()
    assert p.tolist() == [[1.75, -2.0], [-4.0, 3.5]]


def test_auxiliary_groups_have_neither():
    params = make_params(torch.float32, [(8, 6), (5,)])
    others = [nn.Parameter(p.detach().clone()) for p in params]
    build = lambda ps, **o: Muon([{"params": ps[:1]}, {"params": ps[1:], "use_muon": False}], **OPTIONS, **o)  # noqa: E731
    stepped = run(build(params, normalizer=AdaMuon(), weight_decay_rule="cautious"), 3)
    plain = run(build(others), 3)
    assert torch.equal(stepped[1], plain[1]) and not torch.equal(stepped[0], plain[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("normalizer", "rule"), VARIANTS)
def test_with_masters_the_rounding_of_the_float32_trajectory(normalizer, rule, dtype):
    options = {"normalizer": normalizer, "weight_decay_rule": rule, "momentum_dtype": torch.float32, **OPTIONS}
    low = make_cases(dtype)
    exact = [nn.Parameter(p.detach().float()) for p in low]
    optimizers = [Muon(groups_of(low), master_dtype=torch.float32, **options), Muon(groups_of(exact), **options)]
    for _ in range(4):
        for p, q in zip(low, exact, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.float()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(low, exact, strict=True):
        assert torch.equal(optimizers[0].state[p]["master"], q.detach()) and torch.equal(
            p.detach(), q.detach().to(dtype)
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_state_and_its_dtypes(dtype):
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for normalizer, key, shape in ((NorMuon(), "row_exp_avg_sq", [24]), (AdaMuon(), "exp_avg_sq", [24, 16])):
        (p,) = params = make_params(dtype, [(24, 16)])
        optimizer = Muon(params, normalizer=normalizer)
        run(optimizer, 1)
        state = optimizer.state[p]
        assert set(state) == {"momentum_buffer", key}
        assert state["momentum_buffer"].dtype == dtype
        assert (state[key].dtype, list(state[key].shape)) == (expected, shape)


@pytest.mark.parametrize(("normalizer", "rule"), VARIANTS)
def test_a_step_that_the_scaler_skips_leaves_everything(normalizer, rule):
    params = make_cases(torch.float32)
    optimizer = Muon(groups_of(params), normalizer=normalizer, weight_decay_rule=rule, **OPTIONS)
    twin = copy.deepcopy(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(4):
        before = tensors_of(optimizer)
        for p in params:
            p.grad = scaler.scale(torch.randn_like(p))
        if step == 2:
            params[3].grad.view(-1)[0] = math.inf
        scaler.step(optimizer)
        scaler.update()
        if step == 2:
            assert_equal(tensors_of(optimizer), before)
        else:
            for p, q in zip(params, (q for group in twin.param_groups for q in group["params"]), strict=True):
                q.grad = p.grad / 4.0 if step < 2 else p.grad / 2.0
            twin.step()
    assert_equal(tensors_of(optimizer), tensors_of(twin))


def through_state_dict(optimizer):
    """Into plain groups; the checkpoint brings the options."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    params = [nn.Parameter(p.detach().clone()) for group in optimizer.param_groups for p in group["params"]]
    other = Muon(groups_of(params))
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@pytest.mark.parametrize("copied", [through_state_dict, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize(("normalizer", "rule"), VARIANTS)
def test_a_copy_continues_bitwise(normalizer, rule, copied):
    optimizer = Muon(groups_of(make_cases(torch.float32)), normalizer=normalizer, weight_decay_rule=rule, **OPTIONS)
    run(optimizer, 3)
    other = copied(optimizer)
    assert other.param_groups[0]["normalizer"] == normalizer and other.param_groups[0]["weight_decay_rule"] == rule
    run(optimizer, 2, first=3)
    run(other, 2, first=3)
    assert_equal(tensors_of(other), tensors_of(optimizer))


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_a_checkpoint_moves_to_parameters_that_lie_otherwise(normalizer):
    """Of a convolution whose elements lie in another order."""
    build = lambda p: Muon([p], layout="flatten", normalizer=normalizer, **OPTIONS, **FLOAT64)  # noqa: E731
    p = nn.Parameter(torch.randn(8, 4, 3, 3, dtype=torch.float64))
    first = build(p)
    run(first, 2)
    q = nn.Parameter(p.detach().to(memory_format=torch.channels_last, copy=True))
    second = build(q)
    second.load_state_dict(first.state_dict())
    run(first, 2, first=2)
    run(second, 2, first=2)
    torch.testing.assert_close(q.detach(), p.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_a_checkpoint_without_second_moments_starts_them_at_zero(normalizer):
    params = make_params(torch.float32)
    plain = Muon(params, **OPTIONS)
    run(plain, 2)
    saved = plain.state_dict()
    del saved["param_groups"][0]["normalizer"], saved["param_groups"][0]["weight_decay_rule"]  # an older one
    mine = [nn.Parameter(p.detach().clone()) for p in params]
    optimizer = Muon(mine, normalizer=normalizer, weight_decay_rule="cautious")
    optimizer.load_state_dict(saved)
    run(optimizer, 1, first=2)
    group, state = optimizer.param_groups[0], optimizer.state[mine[0]]
    assert (group["normalizer"], group["weight_decay_rule"], group["lr"]) == (normalizer, "cautious", 0.03)
    assert 0 < state[normalizer.key].mean() < 0.5 / min(mine[0].shape)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_states_by_parameter_hold_second_moments(normalizer):
    params = make_params(torch.float32, [(12, 8), (6, 6)])
    first, second = (Muon(params, normalizer=normalizer, **OPTIONS) for _ in range(2))
    run(first, 2)
    load_by_parameter(second, (first.state_dict(), params))
    assert_equal(tensors_of(second), tensors_of(first))
    spoiled = first.state_dict()
    spoiled["state"][1][normalizer.key] = torch.zeros(5)
    before = tensors_of(second)
    with pytest.raises(ValueError, match=rf"must have a '{normalizer.key}' of shape \[6(, 6)?\], got \[5\]"):
        load_by_parameter(second, (spoiled, params))
    assert_equal(tensors_of(second), before)


@pytest.mark.parametrize("kind", [NorMuon, AdaMuon])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta2": 1.0}, r"beta2 must be in \[0, 1\), got 1.0"),
        ({"beta2": -0.1}, r"beta2 must be in \[0, 1\), got -0.1"),
        ({"beta2": math.nan}, r"beta2 must be in \[0, 1\), got nan"),
        ({"eps": 0.0}, "eps must be > 0 and finite, got 0.0"),
        ({"eps": math.inf}, "eps must be > 0 and finite, got inf"),
    ],
)
def test_values_out_of_range(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_a_second_moment_of_another_shape_raises_before_anything_changes(normalizer):
    params = make_params(torch.float32, [(4, 6), (5, 6)])
    optimizer = Muon(params, normalizer=normalizer, **OPTIONS)
    run(optimizer, 1)
    optimizer.state[params[1]][normalizer.key] = torch.zeros(3)
    before = tensors_of(optimizer)
    with pytest.raises(ValueError, match=rf"{normalizer.key} of a parameter of shape \[5, 6\] .* got \[3\]"):
        optimizer.step()
    assert_equal(tensors_of(optimizer), before)
