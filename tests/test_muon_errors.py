"""Bad input raises by name and value, before anything has changed."""

import pytest
import torch
from optimizers import make_params, set_grads
from torch import nn

from muon_kernels import Muon
from muon_kernels.variants import NorMuon

MATRIX = [(4, 6)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "lr must be >= 0 and finite, got -1.0"),
        ({"lr": float("nan")}, ValueError, "lr must be >= 0 and finite, got nan"),
        ({"lr": float("inf")}, ValueError, "lr must be >= 0 and finite, got inf"),
        ({"lr": torch.tensor([0.1, 0.2])}, ValueError, r"lr must be a float or a one-element tensor, got shape \[2\]"),
        ({"lr": torch.tensor(1)}, TypeError, r"lr must be a float or a float32 or float64 tensor, got torch\.int64"),
        ({"lr": torch.tensor(-0.1)}, ValueError, "lr must be >= 0 and finite"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be >= 0 and finite, got -0.1"),
        ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, ValueError, r"momentum must be in \[0, 1\), got -0.1"),
        ({"ns_coefficients": (1.0, 2.0)}, TypeError, "Item 0 is not a sequence: 1.0"),
        ({"ns_coefficients": "quintics"}, ValueError, "Unknown coefficients preset 'quintics'"),
        ({"ns_steps": 100}, ValueError, r"ns_steps must be in \[0, 100\), got 100"),
        ({"ns_steps": 2.5}, TypeError, "ns_steps must be an integer, got 2.5"),
        ({"eps": -1e-7}, ValueError, "eps must be >= 0, got -1e-07"),
        ({"adjust_lr_fn": "spectral"}, ValueError, "adjust_lr_fn must be None, a callable or one of .*got 'spectral'"),
        ({"method": "polar"}, ValueError, "method must be one of auto, standard, gram, squaring, svd, got 'polar'"),
        ({"safety_factor": 0.9}, ValueError, "safety_factor must be >= 1 and finite, got 0.9"),
        ({"compute_dtype": torch.int32}, ValueError, "compute_dtype must be one of .*got torch.int32"),
        ({"momentum_dtype": torch.int8}, ValueError, "momentum_dtype must be None or a floating dtype, got torch.int8"),
        ({"master_dtype": torch.int8}, ValueError, "master_dtype must be None or a floating dtype, got torch.int8"),
        ({"master_dtype": "float"}, ValueError, "master_dtype must be None or a floating dtype, got float"),
        ({"compute_dtype": "fp16"}, ValueError, "compute_dtype must be one of .*got fp16"),
        ({"lr": "2e-5"}, TypeError, "lr must be a number, got '2e-5'"),
        ({"weight_decay": "0.1"}, TypeError, "weight_decay must be a number, got '0.1'"),
        ({"momentum": None}, TypeError, "momentum must be a number, got None"),
        ({"eps": "1e-7"}, TypeError, "eps must be a number, got '1e-7'"),
        ({"safety_factor": [1.0]}, TypeError, r"safety_factor must be a number, got \[1.0\]"),
        ({"nesterov": "false"}, TypeError, "nesterov must be True or False, got 'false'"),
        ({"maximize": "no"}, TypeError, "maximize must be True or False, got 'no'"),
        ({"normalizer": "normuon"}, TypeError, r"normalizer must be None, NorMuon\(...\) or .*got 'normuon'"),
        ({"normalizer": NorMuon}, TypeError, "normalizer must be None, .*got <class"),
        ({"weight_decay_rule": "l2"}, ValueError, "weight_decay_rule must be one of decoupled, cautious, got 'l2'"),
        ({"max_workspace_bytes": 0}, ValueError, "max_workspace_bytes must be > 0, got 0"),
    ],
)
def test_constructor(options, error, message):
    with pytest.raises(error, match=message):
        Muon(make_params(torch.float32, MATRIX), **options)
    if "max_workspace_bytes" not in options:
        optimizer = Muon(make_params(torch.float32, MATRIX))
        with pytest.raises(error, match=message):
            optimizer.add_param_group({"params": make_params(torch.float32, MATRIX), **options})
        assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (2, 3, 4, 5)])
def test_only_matrices(shape):
    bad = nn.Parameter(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"Muon only supports 2D parameters .* use_muon=False"):
        Muon([bad])
    optimizer = Muon(make_params(torch.float32, MATRIX))
    with pytest.raises(ValueError, match="only supports 2D"):
        optimizer.add_param_group({"params": [bad]})
    assert len(optimizer.param_groups) == 1
    Muon([{"params": make_params(torch.float32, MATRIX)}, {"params": [bad], "use_muon": False}])


def test_complex_parameters():
    with pytest.raises(TypeError, match=r"parameters must be real floating point, got torch.complex64 .*\[2, 2\]"):
        Muon([nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "lion"}, "algorithm must be one of adamw, nadam, got 'lion'"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ({"betas": (0.9,)}, "betas must be two numbers"),
        ({"eps": -1.0}, "eps must be >= 0, got -1.0"),
        ({"master_dtype": torch.bool}, "master_dtype must be None or a floating dtype, got torch.bool"),
        ({"lr": -1.0}, "lr must be >= 0 and finite, got -1.0"),
        ({"weight_decay": float("inf")}, "weight_decay must be >= 0 and finite, got inf"),
    ],
)
def test_auxiliary_group(options, message):
    with pytest.raises(ValueError, match=message):
        Muon([{"params": [nn.Parameter(torch.zeros(3))], "use_muon": False, **options}])


def spoil_sparse(p):
    p.grad = torch.eye(4, 6).to_sparse()


def spoil_shape(p):
    p.grad.data = torch.zeros(2, 2)


def spoil_dtype(p):
    p.grad.data = torch.zeros(4, 6, dtype=torch.complex64)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_sparse, "does not support sparse gradients, got torch.sparse_coo"),
        (spoil_shape, r"must match its parameter \(\[4, 6\] on cpu\), got \[2, 2\] on cpu"),
        (spoil_dtype, "gradients must be real floating point, got torch.complex64"),
    ],
)
@pytest.mark.parametrize("use_muon", [True, False])
def test_a_bad_gradient_raises_before_anything_changes(spoil, message, use_muon):
    good, bad = make_params(torch.float32, MATRIX * 2)
    aux = nn.Parameter(torch.ones(3))
    groups = [{"params": [good]}, {"params": [aux], "use_muon": False}, {"params": [bad], "use_muon": use_muon}]
    optimizer = Muon(groups, lr=0.1)
    set_grads([good, bad, aux], 0)
    optimizer.step()
    before = [t.clone() for p in (good, bad, aux) for t in (p.detach(), *optimizer.state[p].values())]
    spoil(bad)
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    after = [t for p in (good, bad, aux) for t in (p.detach(), *optimizer.state[p].values())]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def negated():
    return torch.randn(4, 6, dtype=torch.complex64).conj().imag


def negate_gradient(optimizer, p):
    p.grad = negated()


def negate_parameter(optimizer, p):
    p.data = negated()


def negate_momentum(optimizer, p):
    optimizer.state[p]["momentum_buffer"] = negated()


@pytest.mark.parametrize(
    ("spoil", "name", "use_muon"),
    [
        (negate_gradient, "a gradient", True),
        (negate_gradient, "a gradient", False),
        (negate_parameter, "a parameter", True),
        (negate_parameter, "a parameter", False),
        (negate_momentum, "a momentum", True),
    ],
)
def test_what_torch_negates_as_it_reads_it_raises_before_anything_changes(spoil, name, use_muon):
    good, bad = make_params(torch.float32, MATRIX * 2)
    optimizer = Muon([{"params": [good]}, {"params": [bad], "use_muon": use_muon}], lr=0.1)
    set_grads([good, bad], 0)
    spoil(optimizer, bad)
    before = [p.detach().clone() for p in (good, bad)]
    with pytest.raises(ValueError, match=rf"{name} must not be negated lazily .* got shape \[4, 6\]"):
        optimizer.step()
    assert torch.equal(good, before[0]) and torch.equal(bad, before[1])
    assert not any(state["momentum_buffer"].any() for p, state in optimizer.state.items() if p is good)


def test_an_option_spoiled_between_steps_raises_before_anything_changes():
    params = make_params(torch.float32, MATRIX * 2)
    optimizer = Muon([{"params": [params[0]]}, {"params": [params[1]]}], lr=0.1)
    set_grads(params, 0)
    before = [p.detach().clone() for p in params]
    optimizer.param_groups[1]["momentum"] = 1.5
    with pytest.raises(ValueError, match="momentum"):
        optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True)) and not optimizer.state
