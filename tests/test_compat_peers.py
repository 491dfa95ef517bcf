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


MATRICES = [*SHAPES, (16, 8, 3, 3)]
TIMM_SHAPES = [*MATRICES, (7,), (8, 1, 3, 3), (600, 4)]
"""Also what its shape sends to AdamW."""


def timm_pair(shapes=TIMM_SHAPES, **options):
    """Ours and timm's (parameters, optimizer), timm's options given by timm's names."""
    timm = timm_optim()
    theirs, mine = make_params(torch.float32, shapes), make_params(torch.float32, shapes)
    options = {"lr": 0.02, "weight_decay": 0.0, "nesterov": False, "adjust_lr_fn": "match_rms_adamw"} | options
    ours = {"ns_coefficients": "quintic"} | options
    layout = {"flatten": "flatten", "batched": "conv_batched"}[ours.pop("conv_mode", "flatten")]
    auxiliary = {
        "eps": ours.get("eps", 1e-7),
        "betas": ours.pop("betas", (0.9, 0.95)),
        "lr": ours.pop("adamw_lr", ours["lr"]),
        "weight_decay": ours["weight_decay"],  # timm decays biases too
    }
    if ours["adjust_lr_fn"] == "rms_to_rms":
        ours["adjust_lr_fn"] = "spectral_unclamped"
    groups = param_groups_for([(f"p{i}", p) for i, p in enumerate(mine)], layout={"p4": layout})
    for group in groups:
        if not group["use_muon"]:
            group.update(auxiliary)
    return (mine, Muon(groups, **ours)), (theirs, timm.Muon(theirs, **options))


TIMM_OPTIONS = [
    {},
    {"weight_decay": 0.1, "momentum": 0.8},
    {"ns_coefficients": "original", "adjust_lr_fn": "original"},
    {"ns_coefficients": "polar_express", "ns_steps": 7, "adjust_lr_fn": "rms_to_rms"},
    {"ns_coefficients": "polar_express_safer"},
    {"ns_coefficients": [(3.4445, -4.7750, 2.0315)] * 2 + [(2.0, -1.5, 0.5)] * 2, "ns_steps": 4},
    {"conv_mode": "batched", "safety_factor": 1.05},
    {"eps": 1e-3},
    {"adamw_lr": 0.003, "betas": (0.8, 0.99), "weight_decay": 0.1},
]


@pytest.mark.filterwarnings("ignore:adamw_lr is deprecated")
@pytest.mark.parametrize("options", TIMM_OPTIONS, ids=str)
def test_timm(options):
    """Both chains round to bfloat16: docs/migrating.md has the distances that were measured."""
    ours, theirs = timm_pair(**options)
    run_all([ours, theirs], STEPS)
    assert distance(ours[0], theirs[0], make_params(torch.float32, TIMM_SHAPES)) < 0.02


def test_timm_nesterov():
    """Of matrices: timm's fallback becomes NAdamW then."""
    ours, theirs = timm_pair(MATRICES, nesterov=True, weight_decay=0.1)
    run_all([ours, theirs], STEPS)
    assert distance(ours[0], theirs[0], make_params(torch.float32, MATRICES)) < 0.02


ADAMUON_OPTIONS = [{}, {"weight_decay": 0.1, "momentum": 0.8}, {"nesterov": True, "betas": (0.9, 0.8)}]


@pytest.mark.parametrize("options", ADAMUON_OPTIONS, ids=str)
def test_timm_adamuon(options):
    """As above, and timm takes the update's norm from the shape."""
    ours, theirs = timm_pair(MATRICES, **options)
    if "algo" not in theirs[1].param_groups[0]:
        pytest.skip("this timm has no AdaMuon")
    for group in ours[1].param_groups:
        group["normalizer"] = AdaMuon(beta2=options.get("betas", (0.9, 0.95))[1])
    for group in theirs[1].param_groups:
        group["algo"] = "adamuon"
    run_all([ours, theirs], STEPS)
    assert distance(ours[0], theirs[0], make_params(torch.float32, MATRICES)) < 0.03


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


def gns_pair(grouped=lambda params: params, shapes=SHAPES, **options):
    """Ours and the package's (parameters, optimizer); `grouped` makes groups of a list of parameters."""
    package = module(GNS)
    pair = []
    for cls in (gram_newton_schulz.Muon, package.Muon):
        params = make_params(torch.float32, shapes)
        defaults = {"lr": 0.02, "ns_use_kernels": False, "gram_newton_schulz_restart_iterations": [2]}
        pair.append((params, cls(grouped(params), **defaults | options)))
    return pair


GNS_OPTIONS = [
    {},
    {"nesterov": False, "weight_decay": 0.0, "momentum": 0.8},
    {"adjust_lr": "spectral_norm", "ns_coefficients_preset": "YOU_COEFFICIENTS"},
    {"adjust_lr": None, "ns_algorithm": "standard_newton_schulz"},
    pytest.param({"adjust_lr": lambda lr, shape: lr * shape[-1] ** 0.5}, id="a function as adjust_lr"),
    {"ns_coefficients": [(3.4445, -4.7750, 2.0315)] * 2 + [(2.0, -1.5, 0.5)] * 2},
    {"ns_epsilon": 1e-3, "ns_max_batch_size": 1},
]


@pytest.mark.parametrize("options", GNS_OPTIONS, ids=str)
def test_gram_newton_schulz(options):
    """Two chains in 16 bit: docs/migrating.md has the distances that were measured."""
    ours, theirs = gns_pair(**options)
    run_all([ours, theirs], STEPS)
    assert distance(ours[0], theirs[0], make_params(torch.float32, SHAPES)) < 0.02


def gns_groups(params):
    """Options by group, a parameter in blocks, a batch of matrices."""
    split = {"param_split_fn": lambda t: list(t.split([30, 66])), "param_recombine_fn": lambda parts: torch.cat(parts)}
    return [
        {"params": params[:1], "lr": 0.005, "momentum": 0.7, "nesterov": False, "adjust_lr": None},
        {"params": params[1:2], "weight_decay": 0.3, **split},
        {"params": params[2:]},
    ]


GNS_SHAPES = [(64, 64), (96, 40), (3, 40, 24)]


def test_gram_newton_schulz_groups():
    ours, theirs = gns_pair(gns_groups, GNS_SHAPES)
    run_all([ours, theirs], STEPS)
    assert distance(ours[0], theirs[0], make_params(torch.float32, GNS_SHAPES)) < 0.02


def test_gram_newton_schulz_scalar_optimizer():
    """An AdamW inside: its parameters are stepped alike, to rounding in float32."""
    vectors = [make_params(torch.float32, [(7,)]) for _ in range(2)]
    pairs = [gns_pair(scalar_optimizer=torch.optim.AdamW(v, lr=0.01, weight_decay=0.2)) for v in vectors]
    (ours, _), (_, theirs) = pairs
    run_all([(ours[0] + vectors[0], ours[1]), (theirs[0] + vectors[1], theirs[1])], STEPS)
    torch.testing.assert_close(vectors[0], vectors[1])
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
