"""The optimizer of a whole model from keyword arguments, as torchtune and timm pass them."""

import importlib
import json

import pytest
import torch
from optimizers import run, set_grads
from peers import timm_optim
from torch import nn

from muon_kernels import Muon, param_groups_for
from muon_kernels.compat import build_muon
from muon_kernels.compat.timm import register


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(40, 8), nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 8), nn.Linear(8, 5))


def assert_same_after_steps(optimizer, a, expected, b):
    """Two optimizers of two models step alike; their groups may come in another order."""
    for step in range(3):
        for net, o in ((a, optimizer), (b, expected)):
            set_grads(list(net.parameters()), step)
            o.step()
    start = list(model().parameters())
    for p, q, before in zip(a.parameters(), b.parameters(), start, strict=True):
        assert torch.equal(p, q) and not torch.equal(p, before)


def instantiate(config, *args):
    """As torchtune's `config.instantiate`: a dotted path and keyword arguments, from a file as plain values."""
    arguments = json.loads(json.dumps(config))
    path, _, name = arguments.pop("_component_").rpartition(".")
    return getattr(importlib.import_module(path), name)(*args, **arguments)


def test_torchtune_component():
    config = {
        "_component_": "muon_kernels.compat.build_muon",
        "lr": 2e-2,
        "ns_coefficients": "quintic",
        "compute_dtype": "float32",
        "momentum_dtype": "bfloat16",
        "max_aspect_ratio": 4,
        "auxiliary": {"lr": 3e-4, "betas": [0.9, 0.99]},
    }
    a, b = model(), model()
    optimizer = instantiate(config, a.parameters())
    groups = [
        {"params": [b[1].weight, b[3].weight, b[4].weight]},
        {"params": [b[0].weight], "use_muon": False, "lr": 3e-4, "betas": (0.9, 0.99)},
        {
            "params": [p for p in b.parameters() if p.ndim == 1],
            "use_muon": False,
            "lr": 3e-4,
            "betas": (0.9, 0.99),
            "weight_decay": 0.0,
        },
    ]
    dtypes = {"compute_dtype": torch.float32, "momentum_dtype": torch.bfloat16}
    assert_same_after_steps(optimizer, a, Muon(groups, lr=2e-2, ns_coefficients="quintic", **dtypes), b)
    assert optimizer.state[a[1].weight]["momentum_buffer"].dtype == torch.bfloat16


def test_a_component_of_matrices_alone():
    linear = nn.Linear(6, 4, bias=False)
    rows = [[3.0, -4.0, 2.0], [2.0, -1.5, 0.5]]
    config = {"_component_": "muon_kernels.Muon", "lr": 0.1, "layout": [3, 1], "ns_coefficients": rows}
    optimizer = instantiate(config | {"master_dtype": "float32", "compute_dtype": "bfloat16"}, linear.parameters())
    (group,) = optimizer.param_groups
    assert group["layout"] == (3, 1) and group["ns_coefficients"] == tuple(map(tuple, rows))
    assert group["master_dtype"] == torch.float32 and group["compute_dtype"] == torch.bfloat16
    run(optimizer, 1)


def test_of_a_module():
    a, b = model(), model()
    routing = {"use_muon": {"3.weight": False}, "layout": {"1.weight": "rows:2"}}
    optimizer = build_muon(params=a, lr=0.02, weight_decay=0.2, auxiliary={"lr": 1e-3, "algorithm": "nadam"}, **routing)
    groups = param_groups_for(b, auxiliary={"lr": 1e-3, "algorithm": "nadam"}, **routing)
    assert_same_after_steps(optimizer, a, Muon(groups, lr=0.02, weight_decay=0.2), b)
    assert "head" in optimizer.explain()


@pytest.fixture
def timm():
    """timm.optim, with the optimizer registered for one test."""
    optim = timm_optim()
    names = optim._optim_factory.default_registry._optimizers
    before = dict(names)
    register()
    yield optim
    names.clear()
    names.update(before)


def test_timm_registry_with_the_groups_of_timm(timm):
    """By shapes and `fallback_list`, with the weight decay that timm gives its groups."""
    a, b = model(), model()
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.8}
    optimizer = timm.create_optimizer_v2(a, "muonkernels", fallback_list=["0.weight"], **options)
    matrices = [b[1].weight, b[3].weight, b[4].weight]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": [b[0].weight], "use_muon": False, "weight_decay": 0.1},
        {"params": [p for p in b.parameters() if p.ndim == 1], "use_muon": False},
    ]
    defaults = {"nesterov": False, "ns_coefficients": "quintic", "adjust_lr_fn": "match_rms_adamw"}
    expected = Muon(groups, lr=0.02, momentum=0.8, weight_decay=0.0, **defaults)
    assert_same_after_steps(optimizer, a, expected, b)


def test_timm_registry_with_names_and_modules(timm):
    a, b = model(), model()
    optimizer = timm.create_optimizer_v2(
        a, "muonkernels", lr=0.02, weight_decay=0.1, param_group_fn=param_groups_for, nesterov=True, adjust_lr_fn=None
    )
    expected = Muon(param_groups_for(b), lr=0.02, momentum=0.9, weight_decay=0.1, ns_coefficients="quintic")
    assert_same_after_steps(optimizer, a, expected, b)
    assert [p.shape[0] for g in optimizer.param_groups if g["use_muon"] for p in g["params"]] == [16, 8]


def test_timm_takes_underscores_for_a_prefix():
    with pytest.raises(ValueError, match="name must not have an underscore, .*got 'muon_kernels'"):
        register("muon_kernels")
