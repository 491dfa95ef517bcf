"""What an optimizer keeps from one step to the next about its groups, and when it finds that anew."""

import gc
import weakref

import pytest
import torch
from cases import assert_descriptions_differ
from optimizers import make_params, set_grads

import muon_kernels.schedule
from muon_kernels import Muon, extension
from muon_kernels.checks import MUON_OPTIONS, check_muon
from muon_kernels.variants import Int8Momentum

SHAPES = [(12, 8), (8, 12), (12, 8)]


@pytest.fixture
def planned(monkeypatch):
    """The shapes of each list of matrices that waves were planned for."""
    calls = []
    plan = muon_kernels.schedule.plan_waves
    monkeypatch.setattr(muon_kernels.schedule, "plan_waves", lambda s, n, m: calls.append(s) or plan(s, n, m))
    return calls


@pytest.fixture
def optimizer():
    return Muon(make_params(torch.float32, SHAPES), lr=0.1, compute_dtype=torch.float32)


def params_of(optimizer):
    return optimizer.param_groups[0]["params"]


def step(optimizer, seed=0):
    set_grads(params_of(optimizer), seed)
    optimizer.step()


def fresh_step(optimizer, seed):
    """The step that an optimizer with the same state and without a past would make."""
    copy = Muon([p.detach().clone().requires_grad_() for p in params_of(optimizer)], lr=0.1)
    copy.load_state_dict(optimizer.state_dict())
    step(copy, seed)
    return params_of(copy)


def test_waves_are_planned_once(optimizer, planned):
    for seed in range(3):
        step(optimizer, seed)
    assert planned == [tuple(SHAPES)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ns_steps", 3),
        ("ns_coefficients", "polar_express"),
        ("method", "squaring"),
        ("adjust_lr_fn", "match_rms_adamw"),
        ("layout", "rows:2"),
        ("compute_dtype", torch.float64),
        ("lr", 0.5),
        ("weight_decay", 0.5),
        ("momentum", 0.5),
        ("nesterov", False),
        ("maximize", True),
        ("safety_factor", 1.5),
    ],
)
def test_an_option_that_changes_between_steps(optimizer, name, value):
    step(optimizer)
    unchanged = [p.detach().clone() for p in fresh_step(optimizer, 1)]
    optimizer.param_groups[0][name] = value
    expected = fresh_step(optimizer, 1)
    step(optimizer, 1)
    for p, other, before in zip(params_of(optimizer), expected, unchanged, strict=True):
        assert torch.equal(p, other) and not torch.equal(p, before)


@pytest.mark.parametrize(
    ("name", "value", "times"),
    [
        ("ns_steps", 3, 2),
        ("ns_coefficients", "polar_express", 2),
        ("method", "squaring", 2),
        ("adjust_lr_fn", "match_rms_adamw", 2),
        ("compute_dtype", torch.float64, 2),
        ("momentum_store", Int8Momentum(), 2),
        ("lr", 0.5, 1),
        ("momentum", 0.5, 1),
    ],
)
def test_what_waves_are_planned_anew_for(optimizer, planned, name, value, times):
    step(optimizer)
    optimizer.param_groups[0][name] = value
    step(optimizer)
    assert len(planned) == times


def test_gradients_that_come_and_go(optimizer, planned):
    step(optimizer)
    for seed, missing in enumerate([1, 2, 1], start=1):
        set_grads(params_of(optimizer), seed)
        params_of(optimizer)[missing].grad = None
        before = params_of(optimizer)[missing].detach().clone()
        optimizer.step()
        assert torch.equal(params_of(optimizer)[missing], before)
    assert planned == [tuple(SHAPES), (SHAPES[0], SHAPES[2]), (SHAPES[0], SHAPES[1])]


def test_both_kinds_of_step_of_a_period_are_kept(planned):
    optimizer = Muon(make_params(torch.float32, SHAPES), lr=0.1, layout="rows:2", period=2)
    for seed in range(4):
        step(optimizer, seed)
    assert [len(shapes) for shapes in planned] == [3, 6]


def test_parameters_whose_data_were_replaced(optimizer, planned):
    step(optimizer)
    p = params_of(optimizer)[0]
    p.data = torch.randn(SHAPES[1])
    optimizer.state[p]["momentum_buffer"] = torch.zeros(SHAPES[1])
    expected = fresh_step(optimizer, 1)
    step(optimizer, 1)
    assert planned[-1] == (SHAPES[1], SHAPES[1], SHAPES[2])
    assert all(torch.equal(a, b) for a, b in zip(params_of(optimizer), expected, strict=True))


def test_states_that_were_replaced_in_another_order(optimizer):
    step(optimizer)
    for p in reversed(params_of(optimizer)):
        optimizer.state[p] = {"momentum_buffer": torch.randn_like(optimizer.state.pop(p)["momentum_buffer"])}
    expected = fresh_step(optimizer, 1)
    step(optimizer, 1)
    assert all(map(torch.equal, params_of(optimizer), expected))


@pytest.mark.parametrize(
    "momentum",
    [torch.zeros(8, 12), torch.zeros(12, 9), torch.zeros(96), torch.zeros(12, 8, dtype=torch.int8)],
    ids=lambda m: f"{m.dtype}{list(m.shape)}",
)
def test_a_momentum_that_is_not_like_its_parameter(optimizer, momentum):
    step(optimizer)
    optimizer.state[params_of(optimizer)[2]]["momentum_buffer"] = momentum
    set_grads(params_of(optimizer), 1)
    before = [p.detach().clone() for p in params_of(optimizer)]
    kept = optimizer.state[params_of(optimizer)[0]]["momentum_buffer"].clone()
    with pytest.raises(ValueError, match=r"a momentum must be like its parameter \(\[12, 8\] on cpu\)"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params_of(optimizer), before, strict=True))
    assert torch.equal(optimizer.state[params_of(optimizer)[0]]["momentum_buffer"], kept)


@pytest.mark.parametrize(
    ("lr", "error", "message"),
    [
        (torch.tensor([0.1, 0.2]), ValueError, r"lr must be a float or a one-element tensor, got shape \[2\]"),
        (torch.tensor(0.1, dtype=torch.bfloat16), TypeError, r"float32 or float64 tensor, got torch\.bfloat16"),
    ],
)
def test_a_learning_rate_that_no_kernel_reads(optimizer, lr, error, message):
    step(optimizer)
    before = [p.detach().clone() for p in params_of(optimizer)]
    optimizer.param_groups[-1]["lr"] = lr
    with pytest.raises(error, match=message):
        step(optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(params_of(optimizer), before, strict=True))


def test_a_bad_gradient_after_good_ones(optimizer):
    step(optimizer)
    set_grads(params_of(optimizer), 1)
    params_of(optimizer)[1].grad = params_of(optimizer)[1].grad.to_sparse()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="sparse"):
            optimizer.step()
    step(optimizer, 2)


def test_no_tensor_is_kept(optimizer):
    step(optimizer)
    grads = [weakref.ref(p.grad) for p in params_of(optimizer)]
    momenta = [weakref.ref(state.pop("momentum_buffer")) for state in optimizer.state.values()]
    optimizer.zero_grad()
    gc.collect()
    assert not any(reference() is not None for reference in (*grads, *momenta))


def test_descriptions_tell_lists_apart(monkeypatch):
    monkeypatch.setattr(extension, "unavailable_reason", lambda: "not built")
    assert_descriptions_differ()


class Read(dict):
    """A group that knows which options were looked at."""

    def __init__(self, group):
        super().__init__(group)
        self.names = set()

    def __getitem__(self, name):
        self.names.add(name)
        return super().__getitem__(name)


@pytest.mark.parametrize("more", [{}, {"layout": "rows:2", "period": 3}, {"momentum_store": Int8Momentum()}])
def test_all_options_that_are_checked_are_compared(optimizer, more):
    group = Read(optimizer.param_groups[0] | more)
    check_muon(group)
    assert group.names <= set(MUON_OPTIONS)


@pytest.mark.parametrize(("name", "value"), [("ns_steps", 5.0), ("momentum", 1.5), ("period", True), ("layout", 3)])
def test_a_wrong_option_after_a_good_step(optimizer, name, value):
    step(optimizer)
    before = [p.detach().clone() for p in params_of(optimizer)]
    optimizer.param_groups[0][name] = value
    with pytest.raises((TypeError, ValueError), match=name):
        step(optimizer, 1)
    assert all(map(torch.equal, params_of(optimizer), before))


def test_a_list_that_is_given_between_steps_is_copied(optimizer):
    step(optimizer)
    rows = [[3.0, -4.0, 2.0]]
    optimizer.param_groups[0]["ns_coefficients"] = rows
    step(optimizer, 1)
    rows[0][0] = "a"
    expected = fresh_step(optimizer, 2)
    step(optimizer, 2)
    assert all(map(torch.equal, params_of(optimizer), expected))
