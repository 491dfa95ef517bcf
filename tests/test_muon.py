"""What a user does with the optimizer: closures, groups, schedulers, AMP, missing gradients, buckets and waves."""

import copy
import pickle

import pytest
import torch
from optimizers import SHAPES, make_params, run, set_grads
from torch import nn

from muon_kernels import Muon, dispatch

F32 = {"compute_dtype": torch.float32}


def test_closure_runs_with_grad_enabled_and_its_value_returns():
    (p,) = make_params(torch.float32, [(4, 6)])
    optimizer = Muon([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert first.requires_grad and optimizer.step(closure) < first
    assert optimizer.step() is None


def test_gradients_are_not_touched():
    for nesterov in (True, False):
        for dtype in (torch.float32, torch.bfloat16):
            params = make_params(dtype)
            set_grads(params, 0)
            before = [p.grad.clone() for p in params]
            pointers = [p.grad.data_ptr() for p in params]
            optimizer = Muon(params, lr=0.1, nesterov=nesterov)
            optimizer.step()
            momenta = [optimizer.state[p]["momentum_buffer"].clone() for p in params]
            assert all(torch.equal(p.grad, b) for p, b in zip(params, before, strict=True))
            assert pointers == [p.grad.data_ptr() for p in params]
            expected = [torch.zeros_like(b).lerp(b, 0.05) for b in before]
            assert all(torch.equal(m, e) for m, e in zip(momenta, expected, strict=True))


def test_a_missing_gradient_skips_the_parameter():
    params = make_params(torch.float32)
    set_grads(params, 0)
    params[2].grad = None
    before = params[2].detach().clone()
    optimizer = Muon(params, lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(params[2], before) and params[2] not in optimizer.state
    for p in params:
        p.grad = None
    assert Muon(params).step() is None


def test_the_result_does_not_depend_on_the_company():
    """Same bits alone, in a bucket, in any order, and in waves."""
    together = run(Muon(make_params(torch.float32), lr=0.1), 3)
    waves = run(Muon(make_params(torch.float32), lr=0.1, max_workspace_bytes=1), 3)
    one_wave = run(Muon(make_params(torch.float32), lr=0.1, max_workspace_bytes=2**30), 3)
    params = make_params(torch.float32)
    optimizers = [Muon([p], lr=0.1) for p in reversed(params)]
    for step in range(3):
        set_grads(params, step)
        for optimizer in optimizers:
            optimizer.step()
    for results in (waves, one_wave, params):
        assert all(torch.equal(a, b) for a, b in zip(together, results, strict=True))


def test_mixed_dtypes_in_one_group():
    params = make_params(torch.float32)[:4] + make_params(torch.bfloat16)[4:] + make_params(torch.float64)[:2]
    result = run(Muon(params, lr=0.1, **F32), 2)
    for p, expected in zip(params, result, strict=True):
        assert p.dtype == expected.dtype and p.isfinite().all()
    alone = run(Muon(make_params(torch.float64)[:2], lr=0.1, **F32), 1)
    assert alone[0].dtype == torch.float64


def test_one_call_of_each_multi_tensor_op_per_bucket(monkeypatch):
    calls = []
    run_op = dispatch.run

    def spy(name, tensors, *args, **kwargs):
        calls.append((name, len(tensors)))
        return run_op(name, tensors, *args, **kwargs)

    monkeypatch.setattr(dispatch, "run", spy)
    params = make_params(torch.float32)
    run(Muon(params, lr=0.1, max_workspace_bytes=2**30), 1)
    per_matrix = [call for call in calls if call[0] in ("prologue", "apply")]
    assert per_matrix == [("prologue", len(SHAPES)), ("apply", len(SHAPES))]


def test_non_contiguous_parameters():
    base = make_params(torch.float32, [(20, 12)])[0].detach()
    straight = nn.Parameter(base.clone())
    transposed = nn.Parameter(base.T.contiguous().T)
    strided = nn.Parameter(torch.zeros(20, 24)[:, ::2].copy_(base))
    for p in (straight, transposed, strided):
        p.grad = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
        Muon([p], lr=0.1, **F32).step()
    torch.testing.assert_close(transposed, straight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(strided, straight, rtol=0, atol=0)


def test_empty_parameter():
    p, q = nn.Parameter(torch.empty(0, 5)), make_params(torch.float32, [(3, 4)])[0]
    p.grad = torch.empty(0, 5)
    set_grads([q], 0)
    Muon([p, q]).step()


@pytest.mark.parametrize("method", ["standard", "gram", "squaring", "svd"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_gradient_spoils_only_its_own_parameter(bad, method):
    clean, spoiled = make_params(torch.float32), make_params(torch.float32)
    for params in (clean, spoiled):
        set_grads(params, 0)
    spoiled[1].grad[0, 0] = bad
    for params in (clean, spoiled):
        Muon(params, lr=0.1, method=method).step()
    assert spoiled[1].isnan().all()
    assert all(torch.equal(a, b) for i, (a, b) in enumerate(zip(clean, spoiled, strict=True)) if i != 1)


def test_maximize():
    up = run(Muon(make_params(torch.float32), lr=0.1, weight_decay=0.0, maximize=True, **F32), 1)
    down = run(Muon(make_params(torch.float32), lr=0.1, weight_decay=0.0, **F32), 1)
    for start, u, d in zip(make_params(torch.float32), up, down, strict=True):
        torch.testing.assert_close(u - start, start - d, rtol=1e-5, atol=1e-6)


def test_svd_method_moves_by_the_polar_factor():
    params = make_params(torch.float64)
    start = [p.detach().clone() for p in params]
    run(
        Muon(params, lr=1.0, weight_decay=0.0, method="svd", compute_dtype=torch.float64, adjust_lr_fn=lambda s: 1.0), 1
    )
    for p, s in zip(params, start, strict=True):
        torch.testing.assert_close(torch.linalg.svdvals(s - p), torch.ones(min(p.shape), dtype=torch.float64))


@pytest.mark.parametrize("lr", [0.05, torch.tensor(0.05), torch.tensor([0.05])])
def test_learning_rate_schedules(lr):
    """With no momentum a step depends on its own gradient only, so the second one can be checked alone."""
    params = make_params(torch.float32)
    optimizer = Muon([{"params": params[:4]}, {"params": params[4:], "lr": 0.01}], lr=lr, momentum=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    run(optimizer, 1)
    scheduler.step()
    assert [float(g["lr"]) for g in optimizer.param_groups] == pytest.approx([0.025, 0.005])
    fresh = [nn.Parameter(p.detach().clone()) for p in params]
    run(optimizer, 1, first=1)
    reference = Muon([{"params": fresh[:4], "lr": 0.025}, {"params": fresh[4:], "lr": 0.005}], momentum=0.0)
    run(reference, 1, first=1)
    torch.testing.assert_close(params, fresh)


def test_tensor_lr_equals_float_lr():
    as_float = run(Muon(make_params(torch.float32), lr=0.05), 3)
    as_tensor = run(Muon(make_params(torch.float32), lr=torch.tensor(0.05, dtype=torch.float64)), 3)
    assert all(torch.equal(a, b) for a, b in zip(as_float, as_tensor, strict=True))


def test_add_param_group():
    params = make_params(torch.float32)
    optimizer = Muon(params[:3], lr=0.1)
    optimizer.add_param_group({"params": params[3:], "lr": 0.2, "ns_coefficients": [[3.0, -3.0, 1.0]]})
    assert optimizer.param_groups[1]["ns_coefficients"] == ((3.0, -3.0, 1.0),)
    assert optimizer.param_groups[1]["momentum"] == 0.95
    run(optimizer, 1)


def test_version_counter_sees_the_step():
    """A step between forward and backward is an error, as with every torch optimizer, not a silently wrong gradient."""
    (p,) = make_params(torch.float32, [(4, 6)])
    set_grads([p], 0)
    loss = (p * p).sum()
    Muon([p]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("found_inf", [0.0, 1.0])
def test_grad_scaler(found_inf):
    """GradScaler hands its scale and its flag to the optimizer; gradients stay scaled."""
    scaled, plain = make_params(torch.float32), make_params(torch.float32)
    optimizer, reference = Muon(scaled, lr=0.1), Muon(plain, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros((), requires_grad=True))  # creates the scale
    set_grads(scaled, 0, scale=1024.0)
    set_grads(plain, 0)
    if found_inf:
        scaled[0].grad[0, 0] = torch.inf
    before = [p.detach().clone() for p in scaled]
    scaler.step(optimizer)
    scaler.update()
    reference.step()
    if found_inf:
        assert all(torch.equal(a, b) for a, b in zip(scaled, before, strict=True))
        assert not any(state["momentum_buffer"].any() for state in optimizer.state.values())
        assert scaler.get_scale() == 512.0
    else:
        assert all(torch.equal(a, b) for a, b in zip(scaled, plain, strict=True))


def test_pickle_and_deepcopy_continue_the_run():
    params = make_params(torch.float32)
    optimizer = Muon(params, lr=0.1, max_workspace_bytes=12345)
    run(optimizer, 2)
    copies = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    expected = run(optimizer, 2, first=2)
    for other in copies:
        assert other._max_workspace_bytes == 12345
        assert all(torch.equal(a, b) for a, b in zip(run(other, 2, first=2), expected, strict=True))
