"""Checkpoints of 8-bit momenta: to copies, memory orders, packages and stores; states and options that are refused."""

import copy
import io
import pickle

import pytest
import torch
from momentum_cases import OPTIONS, SAVED, STORE, assert_equal, groups_of, make_cases, tensors_of
from optimizers import make_params, run, set_grads
from torch import nn

from muon_kernels import Muon
from muon_kernels.checks import check_shared
from muon_kernels.compat import dequantized, load_by_parameter, to_torch
from muon_kernels.variants import Int8Momentum


def through_state_dict(optimizer):
    """Into plain groups; the checkpoint brings the options."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    params = [nn.Parameter(p.detach().clone()) for group in optimizer.param_groups for p in group["params"]]
    other = Muon(groups_of(params, SAVED))
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@pytest.mark.parametrize("copied", [through_state_dict, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_continues_bitwise(copied):
    optimizer = Muon(groups_of(make_cases(cases=SAVED), SAVED), momentum_store=Int8Momentum(32), **OPTIONS)
    run(optimizer, 3)
    other = copied(optimizer)
    assert other.param_groups[0]["momentum_store"] == Int8Momentum(32)
    assert_equal(tensors_of(other), tensors_of(optimizer))
    run(optimizer, 2, first=3)
    run(other, 2, first=3)
    assert_equal(tensors_of(other), tensors_of(optimizer))


@pytest.mark.parametrize("source", [None, Int8Momentum(64)])
@pytest.mark.parametrize("layout", ["flatten", "conv_batched"])
def test_a_checkpoint_moves_to_parameters_that_lie_otherwise(layout, source):
    """Of a convolution whose elements, and so the blocks of its momentum, lie in another order."""
    store = Int8Momentum(64)
    p = nn.Parameter(torch.randn(8, 40, 3, 3))
    first = Muon([p], layout=layout, momentum_store=source, **OPTIONS)
    run(first, 2)
    q = nn.Parameter(p.detach().to(memory_format=torch.channels_last, copy=True))
    second = Muon([q], layout=layout, momentum_store=store, **OPTIONS)
    saved = first.state_dict()
    saved["param_groups"][0]["momentum_store"] = store
    second.load_state_dict(saved)
    q.grad = torch.randn_like(q)
    second.step()
    state = first.state[p]
    before = state["momentum_buffer"] if source is None else store.dequantized(state, layout)
    wanted = before.lerp(q.grad, 0.05)
    assert (store.dequantized(second.state[q], layout) - wanted).norm() <= 0.015 * wanted.norm()


def test_a_checkpoint_of_torch_goes_on_and_back():
    params = make_params(torch.float32)
    theirs = torch.optim.Muon(params, **OPTIONS)
    run(theirs, 3)
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    ours = Muon(copies, momentum_store=STORE)
    ours.load_state_dict(theirs.state_dict())
    run(ours, 1, first=3)
    exact = run(theirs, 1, first=3)
    back = torch.optim.Muon(copies)
    back.load_state_dict(to_torch(ours.state_dict())[0])
    assert ours.param_groups[0]["lr"] == back.param_groups[0]["lr"] == 0.03
    for p, q, end in zip(params, copies, exact, strict=True):
        assert set(ours.state[q]) == {"momentum_codes", "momentum_absmax"}
        wanted = theirs.state[p]["momentum_buffer"]
        assert (back.state[q]["momentum_buffer"] - wanted).norm() <= 0.02 * wanted.norm()
        assert (q - end).norm() <= 0.01 * end.norm()
    run(back, 1, first=4)


@pytest.mark.parametrize("target", [None, Int8Momentum(32), STORE])
def test_states_by_parameter(target):
    params = make_cases(cases=SAVED)
    source = Muon(groups_of(params, SAVED), momentum_store=STORE, **OPTIONS)
    run(source, 2)
    other = Muon(groups_of(params, SAVED), momentum_store=target, **OPTIONS)
    load_by_parameter(other, (source.state_dict(), params))
    set_grads(params, 2)
    other.step()
    assert other.param_groups[0]["momentum_store"] == target
    source.step()
    for p, (_, layout) in zip(params, SAVED, strict=True):
        state = other.state[p]
        found = state["momentum_buffer"] if target is None else target.dequantized(state, layout)
        wanted = STORE.dequantized(source.state[p], layout)
        assert torch.equal(found, wanted) if target == STORE else (found - wanted).norm() <= 0.02 * wanted.norm()


def test_a_momentum_of_another_shape_is_not_stored():
    (p,) = params = make_params(torch.float32, [(5, 6)])
    optimizer = Muon(params, momentum_store=STORE)
    optimizer.state[p]["momentum_buffer"] = torch.ones(6)
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"momentum_buffer must have shape \[5, 6\], got \[6\]"):
        optimizer.step()
    assert set(optimizer.state[p]) == {"momentum_buffer"}


def test_a_store_that_was_turned_off_raises_before_anything_changes():
    params = make_params(torch.float32, [(4, 6), (5, 6)])
    optimizer = Muon([{"params": params[:1]}, {"params": params[1:], "momentum_store": STORE}], **OPTIONS)
    run(optimizer, 1)
    optimizer.param_groups[1]["momentum_store"] = None
    before = tensors_of(optimizer)
    with pytest.raises(ValueError, match=r"shape \[5, 6\] has an 8-bit momentum, but momentum_store is None"):
        optimizer.step()
    assert_equal(tensors_of(optimizer), before)
    optimizer.param_groups[1]["momentum_store"] = STORE
    optimizer.load_state_dict(dequantized(optimizer.state_dict()))
    assert optimizer.param_groups[1]["momentum_store"] is None
    whole = STORE.dequantized({"momentum_codes": before[3], "momentum_absmax": before[4]}, None)
    assert torch.equal(optimizer.state[params[1]]["momentum_buffer"], whole)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("momentum_absmax", torch.zeros(3), r"momentum_absmax of .*\[5, 6\] .* be torch.float32 \[1\], got .*\[3\]"),
        (
            "momentum_codes",
            torch.zeros(5, 6),
            r"momentum_codes of .* be torch.int8 \[5, 6\], got torch.float32 \[5, 6\]",
        ),
        ("momentum_codes", torch.zeros(6, dtype=torch.int8), r"momentum_codes of .* got torch.int8 \[6\]"),
        ("momentum_absmax", None, "momentum_absmax of .* got NoneType"),
    ],
)
def test_a_state_of_another_form_raises_before_anything_changes(key, value, message):
    params = make_params(torch.float32, [(4, 6), (5, 6)])
    optimizer = Muon(params, momentum_store=STORE, **OPTIONS)
    run(optimizer, 1)
    right = optimizer.state[params[1]][key]
    before = tensors_of(optimizer)
    optimizer.state[params[1]][key] = value
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    optimizer.state[params[1]][key] = right
    assert_equal(tensors_of(optimizer), before)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"momentum_store": "int8"}, TypeError, r"momentum_store must be None or Int8Momentum\(...\), got 'int8'"),
        ({"momentum_store": Int8Momentum}, TypeError, "momentum_store must be None or .*got <class"),
        (
            {"momentum_store": STORE, "momentum_dtype": torch.float32},
            ValueError,
            r"momentum_dtype must be None with momentum_store Int8Momentum\(block_size=256\), got torch.float32",
        ),
    ],
)
def test_options_out_of_range(options, error, message):
    with pytest.raises(error, match=message):
        Muon(make_params(torch.float32, [(4, 6)]), **options)


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (0, ValueError, "block_size must be >= 1, got 0"),
        (2.0, TypeError, "block_size must be an integer, got 2.0"),
        (True, TypeError, "block_size must be an integer, got True"),
    ],
)
def test_block_sizes_out_of_range(size, error, message):
    with pytest.raises(error, match=message):
        Int8Momentum(size)


def test_refused_where_ranks_share():
    optimizer = Muon(make_params(torch.float32, [(4, 6)]), momentum_store=STORE)
    with pytest.raises(
        ValueError, match="momentum_store must be None for parameters that several ranks share, got Int8"
    ):
        check_shared(optimizer.param_groups[0])
