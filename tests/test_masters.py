"""Copies of higher precision: the parameters' trajectory is that of float32 parameters, rounded."""

import copy
import pickle

import pytest
import torch
from optimizers import make_params, run
from torch import nn

from muon_kernels import Muon

SHAPES = [(24, 16), (16, 40), (8, 4, 3, 3), (7,), (5, 3)]
LOW = [torch.bfloat16, torch.float16]


def build(params, **options):
    groups = [
        {"params": params[:2]},
        {"params": params[2:3], "layout": "flatten"},
        {"params": params[3:4], "use_muon": False},
        {"params": params[4:], "use_muon": False, "algorithm": "nadam"},
    ]
    return Muon(groups, **{"lr": 0.03, "weight_decay": 0.2, "momentum_dtype": torch.float32} | options)


def as_float(params):
    return [nn.Parameter(p.detach().float()) for p in params]


def run_both(low, exact, steps, first=0):
    """The same 16-bit gradients for both, given to each in its parameters' dtype."""
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for p, q in zip(low[0], exact[0], strict=True):
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
            q.grad = p.grad.float()
        grads = [p.grad.clone() for p in low[0]]
        low[1].step()
        exact[1].step()
        assert all(torch.equal(p.grad, g) for p, g in zip(low[0], grads, strict=True))


def assert_rounded(low, exact):
    for p, q in zip(low[0], exact[0], strict=True):
        assert torch.equal(low[1].state[p]["master"], q.detach())
        assert torch.equal(p.detach(), q.detach().to(p.dtype))


def pair(dtype):
    params = make_params(dtype, SHAPES)
    floats = as_float(params)
    return (params, build(params, master_dtype=torch.float32)), (floats, build(floats))


@pytest.mark.parametrize("dtype", LOW)
def test_bitwise_the_rounding_of_the_float32_trajectory(dtype):
    low, exact = pair(dtype)
    run_both(low, exact, 5)
    assert_rounded(low, exact)


def test_steps_below_the_last_bit_add_up():
    start = make_params(torch.bfloat16, [(16, 16)])[0].detach() + 1  # near 1, where a step must be 2^-8 to be seen
    plain, kept = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    for p, dtype in ((plain, None), (kept, torch.float32)):
        run(Muon([p], lr=2e-4, weight_decay=0.0, master_dtype=dtype), 40)
    assert torch.equal(plain.detach(), start)
    assert not torch.equal(kept.detach(), start)


def test_a_checkpoint_continues_bitwise():
    low, exact = pair(torch.bfloat16)
    run_both(low, exact, 2)
    params = [nn.Parameter(p.detach().clone()) for p in low[0]]
    other = build(params, master_dtype=torch.float32)
    other.load_state_dict(low[1].state_dict())
    assert all(other.state[p]["master"].dtype == torch.float32 for p in params)
    run_both((params, other), exact, 2, first=2)
    assert_rounded((params, other), exact)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copied_optimizer_continues_bitwise(clone):
    low, exact = pair(torch.bfloat16)
    run_both(low, exact, 2)
    other = clone(low[1])
    params = [p for group in other.param_groups for p in group["params"]]
    run_both((params, other), exact, 2, first=2)
    assert_rounded((params, other), exact)


@pytest.mark.parametrize("loads_state", [False, True])
def test_a_parameter_that_was_changed_wins_over_its_copy(loads_state):
    params = make_params(torch.bfloat16, [(8, 8)])
    optimizer = Muon(params, lr=0.02, master_dtype=torch.float32)
    run(optimizer, 3)
    if loads_state:
        optimizer.load_state_dict(optimizer.state_dict())
    master = optimizer.state[params[0]]["master"].clone()
    with torch.no_grad():
        params[0][2:4] = 5.0
    optimizer.param_groups[0]["lr"] = 0.0
    run(optimizer, 1)
    master[2:4] = 5.0
    assert torch.equal(optimizer.state[params[0]]["master"], master)
    assert torch.equal(params[0].detach(), master.bfloat16())


def test_a_change_through_data_is_not_seen():
    params = make_params(torch.bfloat16, [(8, 8)])
    optimizer = Muon(params, lr=0.0, master_dtype=torch.float32)
    run(optimizer, 1)
    before = params[0].detach().clone()
    params[0].data.fill_(5.0)
    run(optimizer, 1)
    assert torch.equal(params[0].detach(), before)


def test_only_parameters_with_fewer_bits_get_a_copy():
    params = [nn.Parameter(torch.randn(8, 8).to(dtype)) for dtype in (torch.bfloat16, torch.float32, torch.float64)]
    optimizer = Muon(params, master_dtype=torch.float32)
    run(optimizer, 1)
    assert ["master" in optimizer.state[p] for p in params] == [True, False, False]
    assert not any("master" in state for state in run_plain(params).state.values())


def run_plain(params):
    optimizer = Muon([nn.Parameter(p.detach().clone()) for p in params])
    run(optimizer, 1)
    return optimizer


def test_bytes_of_state_per_parameter():
    params = make_params(torch.bfloat16, [(32, 32)])
    optimizer = Muon(params, master_dtype=torch.float32)
    run(optimizer, 1)
    assert sum(t.nbytes for t in optimizer.state[params[0]].values()) == 32 * 32 * (2 + 4)  # momentum, copy


def test_an_overflow_leaves_everything():
    low, exact = pair(torch.float16)
    run_both(low, exact, 1)
    before = [t.clone() for p in low[0] for t in (p.detach(), *low[1].state[p].values())]
    for stepped in (low, exact):
        stepped[1].grad_scale, stepped[1].found_inf = torch.tensor(4.0), torch.tensor(1.0)
    run_both(low, exact, 1, first=1)
    after = [t for p in low[0] for t in (p.detach(), *low[1].state[p].values())]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    for stepped in (low, exact):
        stepped[1].found_inf.zero_()
    run_both(low, exact, 2, first=2)
    assert_rounded(low, exact)


def test_layouts_of_a_parameter_that_lies_transposed():
    low = nn.Parameter(torch.randn(6, 12).bfloat16().t())
    conv = nn.Parameter(torch.randn(8, 4, 3, 3).bfloat16().to(memory_format=torch.channels_last))
    floats = as_float([low, conv])
    build_two = lambda ps, **o: Muon(  # noqa: E731
        [{"params": ps[:1], "layout": "rows:2"}, {"params": ps[1:], "layout": "flatten"}],
        momentum_dtype=torch.float32, lr=0.1, **o,
    )  # fmt: skip
    pairs = ([low, conv], build_two([low, conv], master_dtype=torch.float32)), (floats, build_two(floats))
    run_both(*pairs, 3)
    assert_rounded(*pairs)
