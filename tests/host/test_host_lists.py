"""Lists that are read once a step, and the waves that are stepped from what was read."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from optimizers import make_params, set_grads
from torch import nn

from muon_kernels import Muon, dispatch, use_backend
from muon_kernels.backends import cuda_wave
from muon_kernels.described import describe

SHAPES = [(8, 12), (12, 8), (0, 8), (24, 6), (8, 12)]
OPTIONS = {"lr": 0.1, "compute_dtype": torch.float16}


@pytest.fixture(autouse=True)
def _cuda():
    with use_backend("cuda"):
        yield


@pytest.fixture
def ops_called(monkeypatch):
    names = []
    run = dispatch.run
    monkeypatch.setattr(dispatch, "run", lambda name, *args, **kwargs: names.append(name) or run(name, *args, **kwargs))
    return names


def replace_data(optimizer):
    params_of(optimizer)[0].data = torch.randn(8, 12)


def turn_data(optimizer):
    p = params_of(optimizer)[1]
    p.data = torch.randn(8, 12).mT


def turn_gradient(optimizer):
    p = params_of(optimizer)[3]
    p.grad = p.grad.mT.contiguous().mT


def replace_momentum(optimizer):
    optimizer.state[params_of(optimizer)[1]]["momentum_buffer"] = torch.randn(12, 8)


def replace_state(optimizer):
    optimizer.state[params_of(optimizer)[0]] = {"momentum_buffer": torch.randn(8, 12)}


def reorder_states(optimizer):
    p = params_of(optimizer)[0]
    optimizer.state[p] = optimizer.state.pop(p)


def load_states(optimizer):
    states = optimizer.state_dict()
    for state in states["state"].values():
        state["momentum_buffer"] = torch.randn_like(state["momentum_buffer"])
    optimizer.load_state_dict(states)


def drop_gradient(optimizer):
    params_of(optimizer)[1].grad = None


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def fresh_copy(optimizer):
    """An optimizer with the same state and without a past; parameters and gradients keep their strides."""
    copies = []
    for p in params_of(optimizer):
        copies.append(nn.Parameter(p.detach().clone(memory_format=torch.preserve_format)))
        copies[-1].grad = None if p.grad is None else p.grad.clone(memory_format=torch.preserve_format)
    copy = Muon(copies, **OPTIONS)
    copy.load_state_dict(optimizer.state_dict())
    return copy


@pytest.mark.parametrize(
    "change",
    [
        replace_data,
        turn_data,
        turn_gradient,
        replace_momentum,
        replace_state,
        reorder_states,
        load_states,
        drop_gradient,
    ],
)
def test_what_changes_between_steps_is_read_anew(change, ops_called):
    optimizer = Muon(make_params(torch.float32, SHAPES), **OPTIONS)
    for step in range(2):
        set_grads(params_of(optimizer), step)
        optimizer.step()
    set_grads(params_of(optimizer), 2)
    change(optimizer)
    expected = fresh_copy(optimizer)
    for each in (optimizer, expected):
        each.step()
    for p, other in zip(params_of(optimizer), params_of(expected), strict=True):
        assert torch.equal(p, other)
        assert torch.equal(optimizer.state[p]["momentum_buffer"], expected.state[other]["momentum_buffer"])
    assert not ops_called


def test_no_tensor_that_was_read_is_kept():
    optimizer = Muon(make_params(torch.float32, SHAPES), **OPTIONS)
    set_grads(params_of(optimizer), 0)
    optimizer.step()
    filled = [p for p in params_of(optimizer) if p.numel()]
    grads = [weakref.ref(p.grad) for p in filled]
    momenta = [weakref.ref(optimizer.state[p].pop("momentum_buffer")) for p in filled]
    optimizer.zero_grad()
    gc.collect()
    assert not any(reference() is not None for reference in (*grads, *momenta))


def test_a_wave_that_does_not_fit_among_others(ops_called, monkeypatch):
    """The product cannot write a wide matrix that lies transposed: it goes op by op, the others do not."""
    results = []
    for whole in (dispatch.whole, lambda name, lists, request: None):
        monkeypatch.setattr(dispatch, "whole", whole)
        params = make_params(torch.float32, SHAPES)
        params[0].data = params[0].detach().mT.contiguous().mT
        optimizer = Muon(params, max_workspace_bytes=1, **OPTIONS)  # a wave for each matrix
        for step in range(3):
            set_grads(params, step)
            versions = [p._version for p in params]
            optimizer.step()
            assert all(p._version > v or not len(p) for p, v in zip(params, versions, strict=True))
        results.append([*params, *(optimizer.state[p]["momentum_buffer"] for p in params)])
    assert all(map(torch.equal, *results))
    assert ops_called.count("prologue") == 3 * (1 + 4)


@pytest.fixture
def allocated(monkeypatch):
    """Sizes, in doubles, of the memory that waves in one call have taken."""
    sizes = []
    noted = SimpleNamespace(**vars(torch))
    noted.empty = lambda size, **kwargs: sizes.append(size) or torch.empty(size, **kwargs)
    monkeypatch.setattr(cuda_wave, "torch", noted)
    return sizes


def test_waves_share_one_workspace(allocated):
    params = make_params(torch.float32, SHAPES)
    set_grads(params, 0)
    Muon(params, max_workspace_bytes=1, **OPTIONS).step()
    assert len(allocated) == 1


def test_a_wave_that_does_not_fit_takes_no_part_of_the_workspace(allocated):
    small = make_params(torch.float32, [(8, 12)])
    large = nn.Parameter(torch.randn(400, 64).mT)  # wide and transposed
    for params in (small, [*small, large]):
        set_grads(params, 0)
        Muon(params, max_workspace_bytes=1, **OPTIONS).step()
    assert len(allocated) == 2 and allocated[0] == allocated[1]


def test_a_refused_scalar_changes_no_wave():
    params = make_params(torch.float32, SHAPES)
    optimizer = Muon(params, max_workspace_bytes=1, **OPTIONS)
    optimizer.found_inf = torch.zeros(2)
    set_grads(params, 0)
    before = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match="found_inf must be one float32"):
        optimizer.step()
    assert all(map(torch.equal, params, before))


@pytest.mark.parametrize(("shapes", "expected"), [([(2, 3), (3, 2)], False), ([(2, 3), (0, 3)], True), ([], False)])
def test_whether_a_list_holds_empty_tensors(shapes, expected):
    described = describe([torch.zeros(shape) for shape in shapes])
    assert described.read is not None
    assert described.any_empty == expected
    assert described._replace(read=None).any_empty == expected


class Listened(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "other", [torch.zeros(2).as_subclass(Listened), torch.zeros(2).to_sparse(), torch.zeros(2, device="meta")]
)
def test_tensors_that_are_not_read(other):
    assert describe([torch.zeros(2), nn.Parameter(torch.zeros(2))]).read is not None
    assert describe([torch.zeros(2), other]).read is None
