"""`Muon` as torchtitan's `OptimizersContainer` (0.3.0) makes, readies and saves it: the same calls."""

import torch
from optimizers import set_grads
from torch import nn

from muon_kernels import Muon


def build(model):
    """Groups with names beside the parameters, `ParamGroupConfig.optimizer_kwargs`, and keys for torch's kernels."""
    options = {True: {"lr": 0.02, "compute_dtype": "float32"}, False: {"lr": 3e-4, "use_muon": False}}
    groups = []
    for is_muon, kwargs in options.items():
        names = [name for name, p in model.named_parameters() if (p.ndim == 2) == is_muon]
        params = [model.get_parameter(name) for name in names]
        groups.append({"params": params, "param_names": names, "fused": True, "foreach": False, **kwargs})
    return Muon(groups)


def init_optim_state(optimizer):
    """A step of zeros with lr 0, after which the state is there."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step(closure=None)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)


def options_of(group):
    return {key: value for key, value in group.items() if key not in ("params", "param_names")}


def flat_state_dict(optimizer):
    """`state.<name>.<key>` and `param_groups.<name>.<key>`."""
    saved, flat = optimizer.state_dict(), {}
    for group in saved["param_groups"]:
        for i, name in zip(group["params"], group["param_names"], strict=True):
            flat |= {f"state.{name}.{key}": value for key, value in saved["state"][i].items()}
            flat |= {f"param_groups.{name}.{key}": value for key, value in options_of(group).items()}
    return flat


def load_flat_state_dict(optimizer, flat):
    """The keys to look for are those of the optimizer, whose state must be there."""
    states, groups = {}, []
    for group in optimizer.param_groups:
        names, first = group["param_names"], len(states)
        for name, p in zip(names, group["params"], strict=True):
            states[len(states)] = {key: flat[f"state.{name}.{key}"] for key in optimizer.state[p]}
        options = {key: flat[f"param_groups.{names[0]}.{key}"] for key in options_of(group)}
        groups.append(options | {"params": list(range(first, len(states)))})
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))


def train(model, optimizer, steps):
    for step in steps:
        set_grads(list(model.parameters()), step)
        optimizer.step()


def test_the_first_step_of_zeros_moves_nothing():
    model = small_model()
    optimizer = build(model)
    init_optim_state(optimizer)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), small_model().parameters(), strict=True))
    assert len(optimizer.state) == 6 and optimizer.param_groups[0]["compute_dtype"] == torch.float32


def test_a_flat_checkpoint_continues():
    whole, resumed = small_model(), small_model()
    optimizer, other = build(whole), build(resumed)
    for o in (optimizer, other):
        init_optim_state(o)
    train(whole, optimizer, range(3))
    resumed.load_state_dict(whole.state_dict())
    optimizer.param_groups[0]["lr"] = 0.01
    load_flat_state_dict(other, flat_state_dict(optimizer))
    assert other.param_groups[0]["lr"] == 0.01
    for model, o in ((whole, optimizer), (resumed, other)):
        train(model, o, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))
