"""State dicts: round trips, torch.optim.Muon's in both directions, dtypes, and safe loading."""

import copy

import pytest
import torch
from optimizers import make_params, run

from muon_kernels import Muon

OPTIONS = {"lr": 0.05, "weight_decay": 0.2, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
BF16 = {"compute_dtype": torch.bfloat16, "method": "standard"}


def copies_of(params):
    return [torch.nn.Parameter(p.detach().clone()) for p in params]


def test_round_trip_continues_bitwise():
    params = make_params(torch.float32)
    optimizer = Muon(params, **OPTIONS)
    run(optimizer, 3)
    other = Muon(copies_of(params), lr=1.0)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.05 and other.param_groups[0]["adjust_lr_fn"] == "match_rms_adamw"
    assert all(torch.equal(a, b) for a, b in zip(run(optimizer, 2, first=3), run(other, 2, first=3), strict=True))


def test_state_has_torchs_only_key():
    params = make_params(torch.float32)
    optimizer = Muon(params)
    run(optimizer, 1)
    assert {key for state in optimizer.state_dict()["state"].values() for key in state} == {"momentum_buffer"}


@pytest.mark.parametrize("direction", ["from torch", "to torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_optim_muon_state(dtype, direction):
    params = make_params(dtype)
    theirs, ours = torch.optim.Muon, lambda p, **o: Muon(p, **o, **BF16)
    source, target = (theirs, ours) if direction == "from torch" else (ours, theirs)
    first = source(params, **OPTIONS)
    run(first, 3)
    second = target(copies_of(params), **OPTIONS)
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # torch's loader keeps the saved tensors themselves
    before = [p.detach().clone() for p in params]
    for a, b, start in zip(run(first, 2, first=3), run(second, 2, first=3), before, strict=True):
        assert (a - b).double().norm() <= 0.05 * (a - start).double().norm()


def test_float32_momentum_of_bfloat16_parameters_stays_float32():
    params = make_params(torch.bfloat16)
    optimizer = Muon(params, momentum_dtype=torch.float32)
    run(optimizer, 2)
    assert all(state["momentum_buffer"].dtype == torch.float32 for state in optimizer.state.values())
    other = Muon(copies_of(params), momentum_dtype=torch.float32)
    other.load_state_dict(optimizer.state_dict())
    for p, q in zip(params, other.param_groups[0]["params"], strict=True):
        mine, loaded = optimizer.state[p]["momentum_buffer"], other.state[q]["momentum_buffer"]
        assert loaded.dtype == torch.float32 and torch.equal(mine, loaded) and mine.data_ptr() != loaded.data_ptr()


def test_default_momentum_dtype_is_the_gradients():
    params = make_params(torch.bfloat16)
    optimizer = Muon(params)
    run(optimizer, 1)
    assert all(state["momentum_buffer"].dtype == torch.bfloat16 for state in optimizer.state.values())


def test_safe_loading(tmp_path):
    params = make_params(torch.float32)
    aux = torch.nn.Parameter(torch.zeros(5))
    groups = [{"params": params, "ns_coefficients": "quintic"}, {"params": [aux], "use_muon": False}]
    optimizer = Muon(groups, momentum_dtype=torch.float32, compute_dtype=torch.float32)
    run(optimizer, 2)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    other = Muon([{"params": copies_of(params)}, {"params": copies_of([aux]), "use_muon": False}])
    other.load_state_dict(loaded)
    assert all(torch.equal(a, b) for a, b in zip(run(optimizer, 2, first=2), run(other, 2, first=2), strict=True))


def test_an_older_checkpoint_gets_todays_defaults():
    params = make_params(torch.float32)
    optimizer = Muon(params, method="gram")
    state = optimizer.state_dict()
    for key in ("method", "safety_factor", "compute_dtype", "momentum_dtype", "maximize", "use_muon"):
        del state["param_groups"][0][key]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["method"] == "gram" and optimizer.param_groups[0]["use_muon"] is True
    run(optimizer, 1)


def test_options_that_were_not_saved_stay_as_they_are():
    convolutions = [torch.nn.Parameter(torch.randn(8, 4, 3, 3))]
    optimizer = Muon([{"params": make_params(torch.float32)}, {"params": convolutions, "layout": "flatten", "lr": 0.5}])
    run(optimizer, 1)
    state = optimizer.state_dict()
    del state["param_groups"][1]["layout"]
    state["param_groups"][1]["lr"] = 0.25
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[1]["layout"] == "flatten" and optimizer.param_groups[1]["lr"] == 0.25
    assert "layout" not in state["param_groups"][1]
    run(optimizer, 1)


def test_a_state_of_other_size_is_refused():
    with pytest.raises(ValueError, match="size of optimizer's group"):
        Muon(make_params(torch.float32)).load_state_dict(Muon(make_params(torch.float32)[:3]).state_dict())


def test_a_pre_hook_decides_what_is_loaded():
    params = make_params(torch.float32)
    optimizer = Muon(params)
    run(optimizer, 1)

    def halve(_, state):
        return {
            "state": {i: {"momentum_buffer": s["momentum_buffer"] / 2} for i, s in state["state"].items()},
            "param_groups": state["param_groups"],
        }

    other = Muon(copies_of(params))
    other.register_load_state_dict_pre_hook(halve)
    other.load_state_dict(optimizer.state_dict())
    for p, q in zip(params, other.param_groups[0]["params"], strict=True):
        assert torch.equal(other.state[q]["momentum_buffer"], optimizer.state[p]["momentum_buffer"] / 2)
