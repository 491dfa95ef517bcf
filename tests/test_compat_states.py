"""Checkpoints by parameter, and back to torch's optimizers."""

import copy

import pytest
import torch
from optimizers import make_params, run, set_grads
from torch import nn

from muon_kernels import Muon
from muon_kernels.compat import load_by_parameter, to_torch
from muon_kernels.compat.torch import _adjust_lr, _zeropower_via_newtonschulz
from muon_kernels.variants import NorMuon

SHAPES = [(24, 16), (16, 24), (7,), (5, 3)]
MUON = {"lr": 0.03, "weight_decay": 0.2, "momentum": 0.9}
ADAMW = {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.3, "eps": 1e-6}


def copies_of(params):
    return [nn.Parameter(p.detach().clone()) for p in params]


def one(params):
    groups = [{"params": params[2:], "use_muon": False, **ADAMW}, {"params": params[:2], **MUON}]
    return Muon(groups, compute_dtype=torch.bfloat16, method="standard")


def two(params):
    return torch.optim.Muon(params[:2], **MUON), torch.optim.AdamW(params[2:], **ADAMW)


def step_all(params, optimizers, steps):
    for step in steps:
        set_grads(params, step)
        for optimizer in optimizers:
            optimizer.step()


def assert_close(actual, expected, start):
    """Within what the bfloat16 chain's rounding explains; AdamW's parameters within float32's."""
    for a, b, s in zip(actual, expected, start, strict=True):
        bound = 0.05 if a.shape in SHAPES[:2] else 1e-5
        assert (a - b).norm() <= bound * (b - s).norm()


def test_two_of_torchs_optimizers_become_one():
    params = make_params(torch.float32, SHAPES)
    pair = two(params)
    step_all(params, pair, range(3))
    mine, start = copies_of(params), copies_of(params)
    optimizer = one(mine)
    state_dicts = [optimizer.state_dict() for optimizer in pair]
    load_by_parameter(optimizer, (state_dicts[0], mine[:2]), (state_dicts[1], mine[2:]))
    assert optimizer.state[mine[0]]["momentum_buffer"] is not pair[0].state[params[0]]["momentum_buffer"]
    step_all(mine, [optimizer], range(3, 5))
    step_all(params, pair, range(3, 5))
    assert_close(mine, params, start)


def test_one_becomes_two_of_torchs():
    params = make_params(torch.float32, SHAPES)
    optimizer = one(params)
    torch.optim.lr_scheduler.ConstantLR(optimizer)
    step_all(params, [optimizer], range(3))
    theirs, start = copies_of(params), copies_of(params)
    pair = two(theirs)
    for target, state in zip(pair, to_torch(copy.deepcopy(optimizer.state_dict())), strict=True):
        target.load_state_dict(state)
        assert target.param_groups[0]["initial_lr"] == pytest.approx(3 * target.param_groups[0]["lr"])
    muon_options = set(torch.optim.Muon(make_params(torch.float32, [(4, 4)])).param_groups[0])
    assert set(pair[0].param_groups[0]) == muon_options | {"initial_lr"}
    step_all(params, [optimizer], range(3, 5))
    step_all(theirs, pair, range(3, 5))
    assert_close(theirs, params, start)


def test_groups_are_numbered_anew():
    params = make_params(torch.float32, [(4, 4), (3,), (5, 4), (2,), (6, 4)])
    optimizer = Muon([{"params": [p], "use_muon": p.ndim == 2} for p in params])
    run(optimizer, 1)
    muon, adamw = to_torch(optimizer.state_dict())
    assert [g["params"] for g in muon["param_groups"]] == [[0], [1], [2]]
    assert [s["momentum_buffer"].shape[0] for s in muon["state"].values()] == [4, 5, 6]
    assert [s["exp_avg"].shape[0] for s in adamw["state"].values()] == [3, 2]


def test_other_parameters_keep_their_state():
    params = make_params(torch.float32, SHAPES)
    optimizer = one(params)
    run(optimizer, 2)
    momentum = optimizer.state[params[0]]["momentum_buffer"].clone()
    saved = {"state": {7: {"momentum_buffer": torch.ones(16, 24)}}, "param_groups": [{"params": [7]}]}
    load_by_parameter(optimizer, (saved, [params[1]]))
    assert torch.equal(optimizer.state[params[1]]["momentum_buffer"], torch.ones(16, 24))
    assert torch.equal(optimizer.state[params[0]]["momentum_buffer"], momentum)
    assert optimizer.param_groups[1]["lr"] == 0.03


def test_matrices_as_batches_of_one_go_back_to_torch():
    matrices = make_params(torch.float32, [(8, 4)])
    optimizer = Muon(matrices, layout="batch", ns_coefficients=[(3.0, -4.0, 2.0)] * 5)
    run(optimizer, 1)
    muon, adamw = to_torch(optimizer.state_dict())
    assert muon["param_groups"][0]["ns_coefficients"] == (3.0, -4.0, 2.0) and adamw["param_groups"] == []
    batches = make_params(torch.float32, [(2, 8, 4)])
    optimizer = Muon(batches, layout="batch")
    run(optimizer, 1)
    with pytest.raises(ValueError, match="torch.optim.Muon needs layout to be None, got 'batch' in group 0"):
        to_torch(optimizer.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "qkv"}, "layout to be None, got 'qkv'"),
        ({"maximize": True}, "maximize to be False, got True"),
        ({"normalizer": NorMuon()}, r"normalizer to be None, got NorMuon\(beta2=0.95, eps=1e-08\)"),
        ({"weight_decay_rule": "cautious"}, "weight_decay_rule to be 'decoupled', got 'cautious'"),
        ({"safety_factor": 1.02}, "safety_factor to be 1.0, got 1.02"),
        ({"method": "svd"}, "method to be a Newton-Schulz chain, got 'svd'"),
        ({"adjust_lr_fn": "max_dim"}, "adjust_lr_fn to be one of .*, got 'max_dim'"),
        ({"ns_coefficients": "quintic"}, "ns_coefficients to be one row for all steps, got 'quintic'"),
    ],
)
def test_what_torch_cannot_continue(options, message):
    groups = [
        {"params": make_params(torch.float32, [(6, 4)])},
        {"params": make_params(torch.float32, [(6, 4)]), **options},
    ]
    with pytest.raises(ValueError, match=message + " in group 1"):
        to_torch(Muon(groups).state_dict())


def test_nadam_does_not_become_adamw():
    group = {"params": make_params(torch.float32, [(3,)]), "use_muon": False, "algorithm": "nadam"}
    with pytest.raises(ValueError, match="AdamW cannot continue algorithm 'nadam' of group 0"):
        to_torch(Muon([group]).state_dict())


@pytest.mark.parametrize(
    ("states", "pick", "message"),
    [
        ([{"momentum_buffer": torch.zeros(24, 16)}], [0, 1], "checkpoint 0 holds 1 parameters, got 2"),
        ([{"momentum_buffer": torch.zeros(24, 16)}], [None], r"shape \[3\], is not in the optimizer"),
        ([{"momentum_buffer": torch.zeros(24, 16)}] * 2, [0, 0], r"parameter 1 of checkpoint 0, .* comes twice"),
        ([{"momentum_buffer": torch.zeros(16, 24)}], [0], r"'momentum_buffer' of shape \[24, 16\], got \[16, 24\]"),
        ([{"momentum": torch.zeros(24, 16)}], [0], r"must have the state \['momentum_buffer'\], got \['momentum'\]"),
        ([{"momentum_buffer": torch.zeros(7)}], [2], r"must have the state \['exp_avg', 'exp_avg_sq', 'step'\], got"),
        ([{"step": 3, "exp_avg": torch.zeros(7), "exp_avg_sq": torch.zeros(7)}], [2], "a 'step' of shape .*, got int"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(states, pick, message):
    params = make_params(torch.float32, SHAPES)
    optimizer = one(params)
    run(optimizer, 1)
    before = copy.deepcopy(optimizer.state_dict())
    given = [nn.Parameter(torch.zeros(3)) if i is None else params[i] for i in pick]
    saved = {"state": dict(enumerate(states)), "param_groups": [{"params": list(range(len(states)))}]}
    with pytest.raises(ValueError, match=message):
        load_by_parameter(optimizer, (saved, given))
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"] and after["state"].keys() == before["state"].keys()
    for i, state in before["state"].items():
        assert all(torch.equal(after["state"][i][key], value) for key, value in state.items())


def test_torchs_helpers():
    theirs = torch.optim._muon
    grad = torch.randn(30, 12)
    arguments = ((3.4445, -4.7750, 2.0315), 5, 1e-7)
    mine, before = _zeropower_via_newtonschulz(grad, *arguments), grad.clone()
    expected = theirs._zeropower_via_newtonschulz(grad, *arguments)
    assert mine.dtype == expected.dtype and torch.equal(grad, before)
    # Both round the chain to bfloat16: measured at most 2.6e-2 apart in 40 draws.
    assert (mine - expected).float().norm() < 0.05 * expected.float().norm()
    for rule in (None, "original", "match_rms_adamw"):
        assert _adjust_lr(0.1, rule, torch.Size((12, 4))) == pytest.approx(theirs._adjust_lr(0.1, rule, (12, 4)))
    with pytest.raises(ValueError, match=r"grad must be a 2D matrix, got shape \[2, 3, 4\]"):
        _zeropower_via_newtonschulz(torch.zeros(2, 3, 4), *arguments)
