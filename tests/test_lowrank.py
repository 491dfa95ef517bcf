"""LowRankMuon: its limits, its moments, hostile gradients, state."""

import copy
import math

import pytest
import torch
from optimizers import make_params, run, set_grads
from torch import nn

from muon_kernels import Muon
from muon_kernels.lowrank import LowRankMuon
from muon_kernels.lowrank.moments import KEYS, alignment, moved_moments, new_state

SHAPES = [(8, 8), (12, 5), (5, 12), (5, 12), (1, 7), (7, 1), (1, 1)]
EXACT = {"lr": 0.1, "weight_decay": 0.2, "method": "svd", "compute_dtype": torch.float64}


def copies_of(params):
    return [nn.Parameter(p.detach().clone()) for p in params]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("adjust_lr_fn", [None, "match_rms_adamw"])
def test_without_averages_full_rank_is_muon(dtype, adjust_lr_fn):
    params = make_params(dtype, SHAPES)
    others = copies_of(params)
    options = EXACT | {"adjust_lr_fn": adjust_lr_fn, "momentum": 0.0}
    low, full = LowRankMuon(params, beta2=0.0, eps=1e-12, **options), Muon(others, **options)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    for a, b in zip(run(low, 4), run(full, 4), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_with_steady_singular_vectors_full_rank_is_muon_at_any_momentum():
    params = make_params(torch.float64, SHAPES)
    others = copies_of(params)
    low, full = LowRankMuon(params, eps=1e-12, **EXACT), Muon(others, nesterov=False, **EXACT)
    set_grads(params, 0)
    grads = [p.grad for p in params]
    for size in (1.0, 1.0, 1.0, 1.0):
        for p, q, grad in zip(params, others, grads, strict=True):
            p.grad, q.grad = size * grad, size * grad
        low.step()
        full.step()
    for a, b in zip(params, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_newton_schulz_at_full_rank_is_muon_within_the_band_of_the_coefficients():
    params = make_params(torch.float32, [(16, 48), (48, 16)])
    others = copies_of(params)
    options = {"lr": 1.0, "weight_decay": 0.0, "momentum": 0.0, "ns_coefficients": "polar_express", "ns_steps": 8}
    options |= {"compute_dtype": torch.float32}
    before = [p.detach().clone() for p in params]
    low, full = LowRankMuon(params, beta2=0.0, **options), Muon(others, **options)
    for a, b, start in zip(run(low, 1), run(full, 1), before, strict=True):
        assert (a - b).norm() < 1e-3 * (b - start).norm()


class Float64Formula:
    """LowRankMuon of one matrix by its formula, with exact polar factors, in float64."""

    def __init__(self, p, lr, weight_decay, momentum, beta2, eps):
        self.p = p.detach().to(torch.float64, copy=True)
        self.lr, self.weight_decay, self.momentum, self.beta2, self.eps = lr, weight_decay, momentum, beta2, eps
        self.left, self.right = (torch.zeros(n, 0, dtype=torch.float64) for n in p.shape)
        self.m = self.v = self.m_weight = self.v_weight = torch.zeros(0, dtype=torch.float64)

    def step(self, grad, rank):
        u, s, vh = torch.linalg.svd(grad.double(), full_matrices=False)
        u, s, v = u[:, :rank], s[:rank], vh.mT[:, :rank]
        r = polar(self.left.mT @ u + self.right.mT @ v)

        def average(old, new, decay):
            return decay * (r.mT @ torch.diag(old) @ r).diagonal() + (1 - decay) * new

        self.left = self.momentum * self.left @ r + (1 - self.momentum) * u
        self.right = self.momentum * self.right @ r + (1 - self.momentum) * v
        self.m, self.v = average(self.m, s, self.momentum), average(self.v, s * s, self.beta2)
        self.m_weight, self.v_weight = average(self.m_weight, 1, self.momentum), average(self.v_weight, 1, self.beta2)
        ratio = self.m / self.m_weight / ((self.v / self.v_weight).sqrt() + self.eps)
        update = polar(self.left) @ torch.diag(ratio) @ polar(self.right).mT
        rows, cols = self.p.shape
        scale = math.sqrt(max(1, rows / cols))
        self.p = self.p - self.lr * self.weight_decay * self.p - self.lr * scale * update


def polar(x):
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    return u @ vh


@pytest.mark.parametrize("losses", [[0.2] * 5, [1.0] * 5, [1.0, 0.4, 0.8, 0.2, 0.6]])
def test_is_its_formula(losses):
    params = make_params(torch.float64, [(12, 5), (9, 9), (12, 5), (5, 12)])
    hyper = {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.7, "beta2": 0.9, "eps": 1e-8}
    formulas = [Float64Formula(p, **hyper) for p in params]
    optimizer = LowRankMuon(params, method="svd", max_loss=1.0, **hyper)
    for step, loss in enumerate(losses):
        set_grads(params, step)
        if step == 1:
            params[2].grad = None  # so that matrices of one shape have not one rank
        optimizer.step(loss=loss)
        for formula, p in zip(formulas, params, strict=True):
            if p.grad is not None:
                formula.step(p.grad, int(loss * min(p.shape)))
    for formula, p in zip(formulas, params, strict=True):
        torch.testing.assert_close(p.detach(), formula.p, rtol=1e-8, atol=1e-8)


def test_the_update_has_the_rank_and_the_leading_directions():
    (p,) = make_params(torch.float64, [(20, 30)])
    optimizer = LowRankMuon([p], lr=1.0, weight_decay=0.0, max_rank=4, method="svd")
    before = p.detach().clone()
    set_grads([p], 0)
    optimizer.step()
    u, _, vh = torch.linalg.svd(p.grad, full_matrices=False)
    torch.testing.assert_close(before - p.detach(), u[:, :4] @ vh[:4], rtol=1e-6, atol=1e-6)


def noisy(generator, count=30, rank=3):
    """Gradients [24, 16] with the same leading directions, all but equal singular values, and noise."""
    signal = polar(torch.randn(24, rank, generator=generator)) @ polar(torch.randn(rank, 16, generator=generator))
    return [signal + 0.02 * torch.randn(24, 16, generator=generator) for _ in range(count)]


def test_alignment_keeps_averages_from_cancelling():
    generator = torch.Generator().manual_seed(3)
    state = new_state(torch.empty(24, 16))
    plain = torch.zeros(24, 3)
    for grad in noisy(generator):
        moments = moved_moments([state], [grad], 3, 0.9, 0.9)
        state = {key: moments[key][0] for key in KEYS}
        plain.lerp_(torch.linalg.svd(grad, full_matrices=False)[0][:, :3], 0.1)
    assert state["left_avg"].norm(dim=0).min() > 0.97 * state["weight"].max()
    assert plain.norm(dim=0).max() < 0.9 * state["weight"].max()


@pytest.mark.parametrize("old", [2, 4, 6])
def test_alignment_is_the_best_rotation(old):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    averages = [polar(random(n, old)) for n in (9, 7)]
    vectors = [polar(random(n, 4)) for n in (9, 7)]
    best = alignment(*averages, *vectors)
    assert best.shape == (old, 4)
    torch.testing.assert_close(polar(best), best)

    def distance(rotation):
        return sum((a @ rotation - v).square().sum() for a, v in zip(averages, vectors, strict=True))

    for _ in range(50):
        assert distance(best) <= distance(polar(random(old, 4))) + 1e-9


def test_the_rank_follows_the_loss_by_group():
    params = make_params(torch.float32, [(8, 10), (3, 9), (8, 10), (8, 10)])
    groups = [{"params": params[:2]}, {"params": params[2:], "max_rank": 5, "min_rank": 2, "max_loss": 4.0}]
    optimizer = LowRankMuon(groups, method="svd")
    ranks = []
    for step, loss in enumerate([2.0, torch.tensor(1.0), 0.1, float("nan"), 8.0, 2.0, 0.0, None]):
        set_grads(params, step)
        optimizer.step(loss=loss)
        ranks.append([optimizer.state[p]["exp_avg"].numel() for p in params[:3]])
        for p in params:
            state, rank = optimizer.state[p], optimizer.state[p]["exp_avg"].numel()
            shapes = [(p.shape[0], rank), (p.shape[1], rank), (rank,), (rank,), (rank,), (rank,)]
            assert [tuple(state[key].shape) for key in KEYS] == shapes
            assert all(state[key].untyped_storage().nbytes() == state[key].nbytes for key in KEYS)
    assert ranks == [[8, 3, 2], [4, 1, 2], [1, 1, 2], [8, 3, 5], [8, 3, 5], [2, 1, 2], [1, 1, 2], [8, 3, 5]]
    assert [group["max_loss"] for group in optimizer.param_groups] == [8.0, 8.0]


def test_a_rank_that_changes_finds_the_leading_directions_of_a_steady_gradient():
    (p,) = make_params(torch.float64, [(12, 9)])
    optimizer = LowRankMuon([p], lr=1.0, weight_decay=0.0, method="svd", adjust_lr_fn="constant", max_loss=9.0)
    set_grads([p], 0)
    u, _, vh = torch.linalg.svd(p.grad, full_matrices=False)
    for rank in (9, 9, 4, 1, 6, 6, 2, 9):
        before = p.detach().clone()
        optimizer.step(loss=rank)
        torch.testing.assert_close(before - p.detach(), u[:, :rank] @ vh[:rank], rtol=1e-6, atol=1e-6)


def test_a_closure_gives_the_loss():
    (p,) = make_params(torch.float32, [(6, 8)])
    optimizer = LowRankMuon([p], lr=0.01, max_loss=100.0)

    def closure():
        optimizer.zero_grad()
        loss = (p - 1).square().sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert optimizer.state[p]["exp_avg"].numel() == int(loss.item() / 100 * 6) < 6
    assert optimizer.step(closure).item() < loss.item()


def test_learns_a_low_rank_target():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(20, 3, generator=generator) @ torch.randn(3, 16, generator=generator)
    p = nn.Parameter(torch.zeros(20, 16))
    optimizer = LowRankMuon([p], lr=1.0, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=100)
    for _ in range(100):
        optimizer.zero_grad()
        loss = (p - target).square().mean()
        loss.backward()
        optimizer.step(loss=loss)
        schedule.step()
    assert loss.item() < 1e-2 * target.square().mean().item()
    assert optimizer.state[p]["exp_avg"].numel() == 1


@pytest.mark.parametrize("method", ["auto", "svd"])
def test_hostile_gradients(method):
    generator = torch.Generator().manual_seed(0)
    column, row = torch.randn(6, 1, generator=generator), torch.randn(1, 9, generator=generator)
    cases = {
        "zero": torch.zeros(6, 9),
        "rank 1": column @ row,
        "equal singular values": 3 * torch.eye(6, 9),
        "huge": 1e30 * torch.randn(6, 9, generator=generator),
        "as large as can be": torch.finfo(torch.float32).max * torch.eye(6, 9),
        "one element": torch.zeros(6, 9).index_put((torch.tensor(2), torch.tensor(3)), torch.tensor(-5.0)),
    }
    for name, grad in cases.items():
        p = nn.Parameter(torch.zeros(6, 9))
        optimizer = LowRankMuon([p], lr=1.0, weight_decay=0.0, method=method, compute_dtype=torch.float32)
        for _ in range(3):
            p.grad = grad.clone()
            before = p.detach().clone()
            optimizer.step(loss=1.0)
            assert torch.equal(p.grad, grad), name
            moved = (before - p.detach()).double()
            expected = polar(grad.double()) * (torch.linalg.matrix_rank(grad.double()) == 6)
            if name in ("rank 1", "one element"):
                expected = grad.double() / grad.double().norm()
            band = 1e-4 if method == "svd" else 0.75  # the square of the band of the original coefficients
            assert torch.linalg.matrix_norm(moved - expected, 2) <= band, name


def test_null_directions_stay_out_of_the_averages():
    (p,) = make_params(torch.float32, [(6, 9)])
    p.grad = torch.ones(6, 1) @ torch.arange(9.0)[None]
    optimizer = LowRankMuon([p], max_rank=3)
    optimizer.step()
    for key in ("left_avg", "right_avg"):
        assert optimizer.state[p][key].norm(dim=0).tolist() == pytest.approx([0.05, 0.0, 0.0], abs=1e-6)


def test_tiny_gradients_are_damped_by_eps_and_float64_moments_do_not_underflow():
    p = nn.Parameter(torch.zeros(4, 4))
    optimizer = LowRankMuon([p], lr=1.0, weight_decay=0.0, eps=1e-30, method="svd")
    p.grad = 1e-28 * torch.eye(4)
    optimizer.step()
    torch.testing.assert_close(p.detach(), -torch.eye(4), rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_spoils_its_own_matrix_alone(bad):
    params = make_params(torch.float32, [(5, 7)] * 3)
    optimizer = LowRankMuon(params, lr=0.1)
    alone = copies_of(params[2:])
    other = LowRankMuon(alone, lr=0.1)
    for step in range(2):
        set_grads(params, step)
        alone[0].grad = params[2].grad.clone()
        params[0].grad[1, 2] = bad
        optimizer.step(loss=1.0)
        other.step(loss=1.0)
    assert params[0].isnan().all() and params[1].isfinite().all()
    torch.testing.assert_close(params[2], alone[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_gradients_stay_and_moments_are_precise(dtype):
    params = make_params(dtype, SHAPES)
    optimizer = LowRankMuon(params)
    set_grads(params, 0)
    before = [p.grad.clone() for p in params]
    params[1].grad, before[1] = None, None
    untouched = params[1].detach().clone()
    optimizer.step(loss=1.0)
    assert all(b is None or torch.equal(p.grad, b) for p, b in zip(params, before, strict=True))
    assert torch.equal(params[1], untouched) and params[1] not in optimizer.state
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert {optimizer.state[params[0]][key].dtype for key in KEYS[:2]} == {wide}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_resumes_bitwise(dtype, tmp_path):
    losses = [4.0, 3.0, 3.5, 1.0, 2.0, 0.5]

    def steps(optimizer, first, last):
        params = [p for group in optimizer.param_groups for p in group["params"]]
        for step in range(first, last):
            set_grads(params, step)
            optimizer.step(loss=losses[step])
        return [p.detach().clone() for p in params]

    params = make_params(dtype, SHAPES)
    optimizer = LowRankMuon(params, lr=0.05)
    steps(optimizer, 0, 3)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    other = LowRankMuon(copies_of(params), lr=1.0)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    third = copy.deepcopy(optimizer)
    assert other.param_groups[0]["lr"] == 0.05 and other.param_groups[0]["max_loss"] == 4.0
    expected = steps(optimizer, 3, 6)
    for resumed in (other, third):
        assert all(torch.equal(a, b) for a, b in zip(steps(resumed, 3, 6), expected, strict=True))


def test_no_randomness():
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        results.append(run(LowRankMuon(make_params(torch.float32, SHAPES), max_rank=3), 3))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_groups_added_later_and_a_tensor_lr():
    first, second, empty = make_params(torch.float32, [(4, 6), (3, 5), (0, 5)])
    optimizer = LowRankMuon(
        [first, empty], lr=torch.tensor(0.1), weight_decay=0.0, method="svd", adjust_lr_fn="constant"
    )
    optimizer.add_param_group({"params": [second], "lr": 0.5})
    before = [p.detach().clone() for p in (first, second)]
    set_grads([first, second, empty], 0)
    optimizer.step()
    for p, b, lr in zip((first, second), before, (0.1, 0.5), strict=True):
        assert torch.linalg.matrix_norm(p.detach() - b, 2).item() == pytest.approx(lr, rel=1e-4)
