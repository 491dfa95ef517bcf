"""Chains, whole waves and whole steps."""

import sys

import pytest
import torch
from optimizers import make_params, set_grads
from torch import nn

from muon_kernels import BackendUnavailable, Muon, dispatch, ops, orthogonalize, use_backend
from muon_kernels.variants import Int8Momentum


@pytest.mark.parametrize("method", ["standard", "gram", "squaring"])
@pytest.mark.parametrize("shape", [(2, 24, 40), (40, 24), (3, 7, 7), (2, 9, 1)])
def test_orthogonalize(shape, method):
    """float16 chains that round in another order: measured up to 1.03e-2 apart, of entries up to about 1."""
    g = torch.randn(shape)
    with use_backend("reference"):
        expected = orthogonalize(g, method=method, compute_dtype=torch.float16)
    with use_backend("cuda"):
        torch.testing.assert_close(
            orthogonalize(g, method=method, compute_dtype=torch.float16), expected, rtol=0, atol=2e-2
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"method": "squaring"}, {"eps": 100.0}, {"safety_factor": 2.0}], ids=str)
def test_orthogonalize_in_one_call_has_the_bits_of_its_ops(dtype, options, monkeypatch):
    whole, done = dispatch.whole, []

    def spy(*args):
        run = whole(*args)
        return lambda *args, **kwargs: done.append(run(*args, **kwargs)) or done[-1]

    wide = torch.randn(3, 24, 40, dtype=dtype)
    with use_backend("cuda,reference"):
        for g in (wide, wide.mT, wide[1:, ::2, 3:], wide[:1].expand(4, 24, 40), wide[0, :1], wide[0, :, :1]):
            results = []
            for chosen in (spy, lambda *_: None):
                monkeypatch.setattr(dispatch, "whole", chosen)
                results.append(orthogonalize(g, compute_dtype=torch.float16, **options))
            assert torch.equal(*results), (g.shape, g.stride())
    assert done == [[dtype != torch.float16]] * 6, "the kernel of the last product writes no float16"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layout": "rows:2"},
        {"layout": "transposed"},
        {"layout": "flatten", "shapes": [(8, 2, 3, 3), (4, 8, 1, 1)]},
        {"layout": "batch", "shapes": [(3, 8, 12), (2, 12, 8)]},
        {"preconditioning": "aol", "ns_coefficients": "turbo", "ns_steps": 4},
        {"weight_decay_rule": "cautious"},
        {"master_dtype": torch.float64},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_steps(dtype, options):
    """Measured apart after three steps at lr 0.1: up to 1.2e-3 in float32, 2.0e-3 in bfloat16."""
    options = dict(options)
    shapes = options.pop("shapes", [(8, 12), (12, 8), (24, 6), (8, 12)])
    results = []
    for backend in ("reference", "cuda"):
        params = make_params(dtype, shapes)
        optimizer = Muon(params, lr=0.1, compute_dtype=torch.float16, **options)
        for step in range(3):
            set_grads(params, step)
            with use_backend(backend if "master_dtype" not in options else "cuda,reference"):
                optimizer.step()
        results.append([p.detach() for p in params])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=2e-3 if dtype == torch.float32 else 1e-2)


def test_a_step_that_needs_what_is_refused_changes_nothing():
    """Its elementwise ops would run."""
    params = make_params(torch.float32, [(8, 12), (12, 8)])
    groups = [{"params": params[:1], "compute_dtype": torch.float16}, {"params": params[1:]}]
    optimizer = Muon(groups, lr=0.1, compute_dtype=torch.float32)
    set_grads(params, 0)
    optimizer.step()
    tensors = [*params, *(state["momentum_buffer"] for state in optimizer.state.values())]
    before = [t.detach().clone() for t in tensors]
    refused = "no backend of 'cuda' can run chains: cuda: workspace must be bfloat16 or float16, got torch.float32"
    with use_backend("cuda"), pytest.raises(BackendUnavailable, match=refused):
        optimizer.step()
    assert all(map(torch.equal, tensors, before))


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("preconditioning", ["frobenius", "aol"])
def test_chains_count_behind_their_buffers(preconditioning, steps, monkeypatch):
    """The host's kernels write a counter a product, which is behind all buffers or in one that is not in use."""
    behind = []

    def chains(workspace, program):
        larger = torch.full((program.elements + 64,), 7.0, dtype=workspace.dtype)
        larger[: program.elements] = workspace
        ops.chains(larger[: program.elements], program)
        workspace.copy_(larger[: program.elements])
        behind.append(larger[program.elements :])

    monkeypatch.setattr(sys.modules["muon_kernels.orthogonalize"], "chains", chains)
    monkeypatch.setattr(dispatch, "whole", lambda *_: None)
    g, options = torch.randn(5, 8, 24), {"method": "gram", "ns_steps": steps, "preconditioning": preconditioning}
    results = []
    for backend in ("reference", "cuda"):
        with use_backend(backend):
            results.append(orthogonalize(g, compute_dtype=torch.float16, **options))
    torch.testing.assert_close(*results, rtol=0, atol=2e-2)
    assert behind
    assert all(torch.equal(x, torch.full_like(x, 7.0)) for x in behind)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": False, "maximize": True, "momentum": 0.5, "weight_decay": 0.5},
        {"lr": torch.tensor(0.25)},
        {"eps": 1e30, "safety_factor": 2.0},
        {"method": "squaring"},
        {"layout": "rows:2"},
        {"layout": "cols:2", "max_workspace_bytes": 1},
        {"layout": "transposed", "shapes": [(8, 12), (6, 24)]},
        {"momentum_dtype": torch.bfloat16},
        {"momentum_store": Int8Momentum()},
        {"found_inf": 0.0},
        {"found_inf": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wave_in_one_call_has_the_bits_of_its_ops(dtype, options, monkeypatch):
    options = {"lr": 0.1, "compute_dtype": torch.float16} | options
    shapes, found_inf = options.pop("shapes", [(8, 12), (12, 8), (24, 6), (8, 12)]), options.pop("found_inf", None)
    results, calls = [], []
    run_op = dispatch.run
    monkeypatch.setattr(
        dispatch, "run", lambda name, *args, **kwargs: calls.append(name) or run_op(name, *args, **kwargs)
    )
    for whole in (dispatch.whole, lambda name, lists, request: None):
        monkeypatch.setattr(dispatch, "whole", whole)
        params = make_params(dtype, shapes)
        optimizer = Muon(params, **options)
        for step in range(3):
            set_grads(params, step)
            params[0].grad = params[0].grad.mT.contiguous().mT
            if found_inf is not None and step == 1:
                optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(found_inf)
            versions = [p._version for p in params]
            with use_backend("cuda,reference"):
                optimizer.step()
            assert all(p._version > version for p, version in zip(params, versions, strict=True))
        results.append(
            [*(p.detach() for p in params), *(t for state in optimizer.state.values() for t in state.values())]
        )
        assert ("prologue" in calls) == (len(results) == 2)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("param", "options"),
    [
        (torch.randn(12, 8).mT, {}),
        (torch.randn(8, 12, dtype=torch.float16), {}),
        (torch.randn(8, 12), {"weight_decay_rule": "cautious"}),
        (torch.randn(8, 12), {"preconditioning": "aol", "ns_coefficients": "turbo", "ns_steps": 4}),
    ],
    ids=["wide and transposed", "float16", "cautious", "aol"],
)
def test_waves_that_are_not_whole(param, options, monkeypatch):
    """What the last product cannot write, or what comes between the ops, goes op by op."""
    results, calls = [], []
    run_op = dispatch.run
    monkeypatch.setattr(
        dispatch, "run", lambda name, *args, **kwargs: calls.append(name) or run_op(name, *args, **kwargs)
    )
    for backend in ("reference", "cuda"):
        p = nn.Parameter(param.detach().clone())
        p.grad = torch.ones_like(p).tril()
        with use_backend(backend):
            Muon([p], lr=0.1, compute_dtype=torch.float16, **options).step()
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=0, atol=4e-3)
    assert calls.count("prologue") == 2


@pytest.mark.parametrize(("elements", "fits"), [(2**31, True), (2**31 + 1, False)])
def test_the_largest_matrix_of_a_whole_wave(host_module, elements, fits):
    one, whole = (0, 1, 1, 1, 1, 1), (0, 1, 1, elements, elements, elements)
    wave = host_module.Wave(host_module.Chains([], [], [], []), [whole], [one], [whole])
    expanded = [torch.zeros(1, 1).expand(1, elements)]
    lists = (host_module.read(tensors, dispatch.PLAIN) for tensors in (expanded, expanded, [torch.zeros(1, 1)]))
    step = host_module.WaveStep(wave, [0], *lists, [1.0])
    assert step.fits() == fits
