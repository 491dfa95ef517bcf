"""A backend that is asked for by name and refuses an op of a step does so before the step changes anything."""

import contextlib
import copy

import pytest
import torch
from optimizers import make_params, set_grads
from stub_backend import stub_backend
from torch import nn

from muon_kernels import BackendUnavailable, Muon, extension, refusals, use_backend
from muon_kernels.backends import cuda, cuda_products
from muon_kernels.refusals import Matrices, check_backend
from muon_kernels.variants import AdaMuon, Int8Momentum, NorMuon

SHAPES = [(12, 8), (8, 12), (6, 30)]

STEPS = {
    "float16": {},
    "float32": {"compute_dtype": torch.float32},
    "float64": {"compute_dtype": torch.float64, "dtype": torch.float64},
    "bfloat16": {"compute_dtype": torch.bfloat16, "dtype": torch.bfloat16, "momentum_dtype": torch.float32},
    "no steps": {"ns_steps": 0},
    "gram": {"method": "gram"},
    "squaring": {"method": "squaring"},
    "svd": {"method": "svd"},
    "svd in float64": {"method": "svd", "compute_dtype": torch.float64},
    "aol": {"preconditioning": "aol"},
    "aol, no steps": {"preconditioning": "aol", "ns_steps": 0},
    "NorMuon": {"normalizer": NorMuon()},
    "AdaMuon": {"normalizer": AdaMuon(), "dtype": torch.float64},
    "cautious": {"weight_decay_rule": "cautious", "dtype": torch.bfloat16},
    "cautious NorMuon": {"weight_decay_rule": "cautious", "normalizer": NorMuon()},
    "master copies": {"master_dtype": torch.float32, "dtype": torch.bfloat16},
    "8-bit momentum": {"momentum_store": Int8Momentum(), "dtype": torch.bfloat16},
    "stochastic rounding": {"rounding": "stochastic", "dtype": torch.bfloat16},
    "blocks": {"layout": "rows:2", "period": 2},
}


@pytest.fixture
def stub():
    with stub_backend() as made:
        yield made


def optimizer_with(dtype=torch.float32, **options):
    """Two groups, and one of AdamW between them."""
    last, *params = make_params(dtype, SHAPES)
    others = {"params": [nn.Parameter(torch.ones(3, dtype=dtype))], "use_muon": False}
    groups = [{"params": params}, others, {"params": [last]}]
    return Muon(groups, **({"lr": 0.1, "compute_dtype": torch.float16} | options))


def give_gradients(optimizer, step):
    set_grads([p for group in optimizer.param_groups for p in group["params"]], step)


def contents(optimizer):
    """Parameters, states and options."""
    params = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    return params, copy.deepcopy(optimizer.state_dict())


def assert_same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
    assert found[1]["param_groups"] == expected[1]["param_groups"]
    torch.testing.assert_close(found[1]["state"], expected[1]["state"], rtol=0, atol=0)


@pytest.mark.parametrize("options", STEPS.values(), ids=STEPS)
def test_what_a_step_asks_for_was_asked_before(stub, options):
    optimizer = optimizer_with(**options)
    for step in range(2):
        stub.forget()
        give_gradients(optimizer, step)
        with use_backend("cuda"):
            optimizer.step()
        assert stub.before == stub.within != set()


@pytest.mark.parametrize("op", ["prologue", "normalize", "chains", "apply", "gemm_apply"])
def test_a_refused_step_changes_nothing(stub, op, monkeypatch):
    optimizer, other = (
        optimizer_with(torch.bfloat16, master_dtype=torch.float32, layout="rows:2", period=3) for _ in "ab"
    )
    for one in (optimizer, other):
        one.param_groups[0]["weight_decay_rule"] = "cautious"  # the others take gemm_apply
        for step in range(2):
            give_gradients(one, step)
            one.step()
        give_gradients(one, 2)
    before = contents(optimizer)
    stub.refuses = lambda name, _: name == op
    monkeypatch.setenv("MUON_KERNELS_BACKEND", "cuda")
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match=f"no backend of 'cuda' can run {op}: cuda: no such {op}"):
            optimizer.step()
        assert_same(contents(optimizer), before)
    monkeypatch.delenv("MUON_KERNELS_BACKEND")
    for one in (optimizer, other):
        one.step()
    assert_same(contents(optimizer), contents(other))


def test_parameters_of_two_dtypes_in_a_group(stub):
    params = [*make_params(torch.float32, SHAPES), *make_params(torch.float64, SHAPES)]
    optimizer = Muon(params, compute_dtype=torch.float16)
    set_grads(params, 0)
    before = [p.detach().clone() for p in params]
    stub.refuses = lambda _, dtypes: torch.float64 in dtypes
    with use_backend("cuda"), pytest.raises(BackendUnavailable, match="no such prologue"):
        optimizer.step()
    assert all(map(torch.equal, params, before))
    assert not any(state["momentum_buffer"].any() for state in optimizer.state.values())
    for p in params[len(SHAPES) :]:
        p.grad = None
    with use_backend("cuda"):
        optimizer.step()
    assert [torch.equal(p, b) for p, b in zip(params, before, strict=True)] == [False] * 3 + [True] * 3


def test_of_several_names_another_may_run_what_one_refuses(stub):
    optimizer = optimizer_with()
    give_gradients(optimizer, 0)
    stub.refuses = lambda op, _: op == "apply"
    with use_backend("cuda,reference"):
        optimizer.step()


def test_each_name_is_asked(stub):
    optimizer = optimizer_with()
    give_gradients(optimizer, 0)
    stub.refuses = lambda op, _: op == "gemm_apply"
    with use_backend("reference"):
        optimizer.step()
    before = contents(optimizer)
    with use_backend("cuda"), pytest.raises(BackendUnavailable, match="no such gemm_apply"):
        optimizer.step()
    assert_same(contents(optimizer), before)


def test_without_a_name_nothing_is_asked(stub):
    optimizer = optimizer_with()
    give_gradients(optimizer, 0)
    optimizer.step()
    assert not stub.before and stub.within


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"param": torch.float16}, None),
        ({"compute": torch.bfloat16}, None),
        ({"compute": torch.float32}, r"chains: cuda: workspace must be bfloat16 or float16, got torch\.float32"),
        ({"grad": torch.float64}, r"prologue: cuda: no CUDA kernel for torch\.float64"),
        ({"momentum": torch.float64}, r"prologue: cuda: no CUDA kernel for torch\.float64"),
        ({"param": torch.float64}, r"gemm_apply: cuda: no CUDA kernel for torch\.float64"),
    ],
)
def test_what_the_cuda_backend_refuses(monkeypatch, changes, reason):
    monkeypatch.setattr(extension, "unavailable_reason", lambda: None)
    for module in (cuda, cuda_products):
        monkeypatch.setattr(module, "capability", lambda _: 90)
    refusals._select.cache_clear()
    group = Muon([nn.Parameter(torch.zeros(2, 2))]).param_groups[0]
    kinds = {"compute": torch.float16} | dict.fromkeys(("param", "grad", "momentum"), torch.float32) | changes
    matrices = Matrices(group, torch.device("cuda", 0), moment=None, shared=False, **kinds)
    refused = pytest.raises(BackendUnavailable, match=reason) if reason else contextlib.nullcontext()
    with use_backend("cuda"), refused:
        check_backend(matrices)
    refusals._select.cache_clear()
