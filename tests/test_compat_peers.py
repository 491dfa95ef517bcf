"""Beside the packages themselves, where they are installed: the same parameters after 20 steps."""

import pytest
import torch
from optimizers import make_params, set_grads
from peers import module, timm_optim
from torch import nn

from muon_kernels import Muon, param_groups_for
from muon_kernels.compat import from_timm, gram_newton_schulz, load_by_parameter
from muon_kernels.variants import AdaMuon

STEPS = 20
SHAPES = [(64, 64), (96, 40), (40, 200), (12, 100)]


def run_all(runs, steps, first=0):
    """Steps (params, optimizer) pairs with the same gradients."""
    for step in range(first, first + steps):
        for params, optimizer in runs:
            set_grads(params, step)
            optimizer.step()


def distance(ours, theirs, start):
    """The largest difference, relative to how far the parameter moved."""
    with torch.no_grad():
        return max(float((a - b).norm() / (b - s).norm()) for a, b, s in zip(ours, theirs, start, strict=True))


@pytest.fixture(autouse=True)
def _nothing_is_compiled():
    with torch.compiler.set_stance("force_eager"):
        yield


def copies_of(params):
    return [nn.Parameter(p.detach().clone()) for p in params]


TIMM_SHAPES = [*SHAPES, (16, 8, 3, 3), (7,), (8, 1, 3, 3), (600, 4)]
"""Also a convolution, and what its shape sends to AdamW."""


def timm_pair(**options):
    timm = timm_optim()
    theirs, mine = make_params(torch.float32, TIMM_SHAPES), make_params(torch.float32, TIMM_SHAPES)
    defaults = {"lr": 0.02, "weight_decay": 0.0, "nesterov": False, "ns_coefficients": "quintic"}
    defaults |= {"adjust_lr_fn": "match_rms_adamw"} | options
    rules = {"rms_to_rms": "spectral_unclamped"}
    layout = {"flatten": "flatten", "batched": "conv_batched"}[defaults.get("conv_mode", "flatten")]
    ours = {k: v for k, v in defaults.items() if k != "conv_mode"}
    ours["adjust_lr_fn"] = rules.get(ours["adjust_lr_fn"], ours["adjust_lr_fn"])
    named = [(f"p{i}", p) for i, p in enumerate(mine)]
    groups = param_groups_for(named, layout={"p4": layout}, auxiliary={"eps": 1e-7})
    for group in groups:
        group.setdefault("weight_decay", defaults["weight_decay"])
        if not group["use_muon"]:  # timm decays biases too
            group["weight_decay"] = defaults["weight_decay"]
    return (mine, Muon(groups, **ours)), (theirs, timm.Muon(theirs, **defaults))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1, "momentum": 0.8},
        {"ns_coefficients": "original", "adjust_lr_fn": "original"},
        {"ns_coefficients": "polar_express", "ns_steps": 7, "adjust_lr_fn": "rms_to_rms"},
        {"conv_mode": "batched", "safety_factor": 1.05},
    ],
)
def test_timm(options):
    """Both chains round to bfloat16: measured with timm 1.0.22 at most 6.0e-3 apart."""
    ours, theirs = timm_pair(**options)
    run_all([ours, theirs], STEPS)
    assert distance(ours[0], theirs[0], make_params(torch.float32, TIMM_SHAPES)) < 0.02


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "momentum": 0.8}])
def test_timm_adamuon(options):
    """As above, and timm takes the update's norm from the shape: measured with timm 1.0.31 at most 1.1e-2 apart."""
    ours, theirs = timm_pair(**options)
    if "algo" not in theirs[1].param_groups[0]:
        pytest.skip("this timm has no AdaMuon")
    for group in ours[1].param_groups:
        group["normalizer"] = AdaMuon()
    for group in theirs[1].param_groups:
        group["algo"] = "adamuon"
    run_all([ours, theirs], STEPS)
    assert distance(ours[0], theirs[0], make_params(torch.float32, TIMM_SHAPES)) < 0.03


def test_a_checkpoint_of_timm_continues():
    ours, theirs = timm_pair(weight_decay=0.1)
    run_all([theirs], 3)
    for p, q in zip(ours[0], theirs[0], strict=True):
        p.data.copy_(q.detach())
    start = copies_of(ours[0])
    load_by_parameter(ours[1], (from_timm(theirs[1].state_dict()), ours[0]))
    run_all([ours, theirs], 3, first=3)
    assert distance(ours[0], theirs[0], start) < 0.02


GNS = "gram_newton_schulz"


def gns_pair(**options):
    package = module(GNS)
    theirs, mine = make_params(torch.float32, SHAPES), make_params(torch.float32, SHAPES)
    options = {"lr": 0.02, "ns_use_kernels": False, "gram_newton_schulz_restart_iterations": [2]} | options
    return (mine, gram_newton_schulz.Muon(mine, **options)), (theirs, package.Muon(theirs, **options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": False, "weight_decay": 0.0, "momentum": 0.8},
        {"adjust_lr": "spectral_norm", "ns_coefficients_preset": "YOU_COEFFICIENTS"},
        {"adjust_lr": None, "ns_algorithm": "standard_newton_schulz"},
    ],
)
def test_gram_newton_schulz(options):
    """Two chains in 16 bit: measured with 0.1.6 at most 5.8e-3 apart (a continued checkpoint 8.8e-3)."""
    ours, theirs = gns_pair(**options)
    run_all([ours, theirs], STEPS)
    assert distance(ours[0], theirs[0], make_params(torch.float32, SHAPES)) < 0.02


def test_a_checkpoint_of_gram_newton_schulz_continues():
    ours, theirs = gns_pair()
    run_all([theirs], 3)
    for p, q in zip(ours[0], theirs[0], strict=True):
        p.data.copy_(q.detach())
    start = copies_of(ours[0])
    ours[1].load_state_dict(theirs[1].state_dict())
    run_all([ours, theirs], 3, first=3)
    assert distance(ours[0], theirs[0], start) < 0.02


def test_gram_newton_schulz_names_and_coefficients():
    package = module(GNS)
    assert set(gram_newton_schulz.__all__) == set(package.__all__)
    for name in ("YOU_COEFFICIENTS", "POLAR_EXPRESS_COEFFICIENTS"):
        assert torch.allclose(torch.tensor(getattr(gram_newton_schulz, name)), torch.tensor(getattr(package, name)))
    x = torch.randn(3, 20, 50)
    theirs = package.GramNewtonSchulz(ns_use_kernels=False, compile_kwargs=None)(x)
    ours = gram_newton_schulz.GramNewtonSchulz(ns_use_kernels=False)(x)
    assert (ours - theirs).norm() < 0.02 * theirs.norm()
