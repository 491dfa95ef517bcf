"""The table of bad input: every entry raises with the name, the value and what was expected, and changes nothing.

`tests/test_muon_errors.py` holds the optimizer's own options and gradients; here is everything around them.
"""

import copy

import pytest
import torch
from optimizers import run
from torch import nn

from muon_kernels import Muon, orthogonalize, param_groups_for
from muon_kernels.compat import from_gram_newton_schulz, gram_newton_schulz, keller_jordan, load_by_parameter
from muon_kernels.matrices import split


class World:
    """A model with gradients and an optimizer that has stepped, and everything in them that must stay."""

    def __init__(self):
        self.model = nn.ModuleDict({"conv": nn.Conv2d(4, 8, 3), "fc1": nn.Linear(6, 8), "fc2": nn.Linear(8, 8)})
        self.params = list(self.model.parameters())
        self.optimizer = Muon(param_groups_for(self.model), lr=0.1)
        run(self.optimizer, 1)
        self.matrix = self.model["fc1"].weight
        self.conv = self.model["conv"].weight
        self.fresh = nn.Parameter(torch.randn(4, 6))

    def snapshot(self):
        tensors = [*self.params, self.fresh, *(p.grad for p in self.params)]
        return [t.detach().clone() for t in tensors], copy.deepcopy(self.optimizer.state_dict())

    def add(self, params, **options):
        self.optimizer.add_param_group({"params": params} | options)


def assert_same(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b) and a.dtype == b.dtype
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def lazy_model():
    return nn.Sequential(nn.LazyLinear(4))


def frozen(world):
    return nn.Linear(4, 4).requires_grad_(False)


def numpy_matrix(t):
    return [torch.zeros(t.shape)]


def half(t):
    return [t[: len(t) // 2]]


def adam(world, **options):
    return torch.optim.Adam([world.fresh], **options)


ROUTING = [
    (lambda w: param_groups_for(w.model, min_dim_size=0), ValueError, "min_dim_size must be >= 1, got 0"),
    (lambda w: param_groups_for(w.model, max_aspect_ratio=0.5), ValueError, "max_aspect_ratio must be >= 1, got 0.5"),
    (lambda w: param_groups_for(w.model, max_aspect_ratio=float("nan")), ValueError, "max_aspect_ratio must be >= 1"),
    (lambda w: param_groups_for(frozen(w)), ValueError, "found no parameter that requires a gradient"),
    (lambda w: param_groups_for([]), ValueError, "found no parameter that requires a gradient"),
    (lambda w: param_groups_for(lazy_model()), TypeError, "parameter 0.weight is lazy"),
    (lambda w: param_groups_for(3), TypeError, "model must be a module, parameters or groups of them, got int"),
    (lambda w: param_groups_for(w.matrix), TypeError, "model must be a module, parameters .* got Parameter"),
    (lambda w: param_groups_for(["fc1"]), TypeError, "model must hold parameters, .* got str"),
    (lambda w: param_groups_for([{"lr": 1.0}]), ValueError, r"must have the key 'params', got \['lr'\]"),
    (lambda w: param_groups_for(w.model, use_muon={"fc3.*": False}), ValueError, "use_muon .* 'fc3.\\*' matches none"),
    (lambda w: param_groups_for(w.model, layout={"fc3.*": "qkv"}), ValueError, "layout .* 'fc3.\\*' matches none"),
    (
        lambda w: param_groups_for(w.model, use_muon=["fc1"]),
        TypeError,
        r"use_muon must be None or a mapping .*\['fc1'\]",
    ),
    (lambda w: param_groups_for(w.model, layout={"fc1.weight": "qvk"}), ValueError, "layout must be .*got 'qvk'"),
    (
        lambda w: param_groups_for(w.model, layout={"fc1.weight": "qkv"}),
        ValueError,
        r"parameter fc1.weight: layout 'qkv' needs rows divisible by 3 .*\[8, 6\]",
    ),
    (
        lambda w: param_groups_for(w.model, use_muon={"fc1.bias": True}),
        ValueError,
        r"parameter fc1.bias: Muon only supports 2D .*\[8\]",
    ),
    (
        lambda w: param_groups_for([{"params": [w.params[1]], "use_muon": True}]),
        ValueError,
        r"parameter \(unnamed\): Muon only supports 2D",
    ),
]

LAYOUTS = [
    (lambda w: split(w.matrix, "qkv"), ValueError, r"layout 'qkv' needs rows divisible by 3 .*\[8, 6\]"),
    (lambda w: split(w.matrix, "cols:4"), ValueError, "layout 'cols:4' needs .*columns by 4"),
    (lambda w: split(w.matrix, (3, 4)), ValueError, r"layout \(3, 4\) needs 7 rows"),
    (lambda w: split(w.conv, "rows:2"), ValueError, r"layout 'rows:2' needs two dimensions, .*\[8, 4, 3, 3\]"),
    (lambda w: split(w.params[1], "flatten"), ValueError, r"layout 'flatten' needs at least two dimensions, .*\[8\]"),
    (
        lambda w: split(w.conv.detach()[..., :2], "flatten"),
        ValueError,
        "needs trailing dimensions that merge, got",
    ),
    (lambda w: split(w.matrix, numpy_matrix), ValueError, "layout 'numpy_matrix' needs 2-D views of the tensor"),
    (lambda w: split(w.matrix, half), ValueError, "layout 'half' needs views that cover the tensor once"),
]

OPTIMIZER = [
    (lambda w: w.add([("again", w.matrix)]), ValueError, "some parameters appear in more than one parameter group"),
    (lambda w: w.add([("fresh", w.fresh)], layout="qkv"), ValueError, r"rows divisible by 3 .*\[4, 6\]"),
    (lambda w: w.add([("fresh", w.fresh)], lr=-1.0), ValueError, "lr must be >= 0 and finite, got -1.0"),
    (lambda w: w.add([w.fresh]), ValueError, "should be with/without names"),
    (lambda w: w.optimizer.load_state_dict(Muon([w.fresh]).state_dict()), ValueError, "different number of parameter"),
    (lambda w: Muon(w.matrix), TypeError, "params argument given to the optimizer should be an iterable"),
]

ORTHOGONALIZE = [
    (lambda w: orthogonalize(torch.zeros(3, 3, dtype=torch.int32)), TypeError, "G must be real floating .*torch.int32"),
    (lambda w: orthogonalize(torch.zeros(3, 3, dtype=torch.complex64)), TypeError, "G must be real floating point"),
    (lambda w: orthogonalize(w.params[1]), ValueError, r"G must have at least two dimensions, got shape \[8\]"),
    (lambda w: orthogonalize(w.matrix, method="qr"), ValueError, "method must be one of .*got 'qr'"),
    (lambda w: orthogonalize(w.matrix, ns_steps=-1), ValueError, r"ns_steps must be in \[0, 100\), got -1"),
    (lambda w: orthogonalize(w.matrix, ns_steps=True), TypeError, "ns_steps must be an integer, got True"),
    (lambda w: orthogonalize(w.matrix, ns_coefficients="cube"), ValueError, "Unknown coefficients preset 'cube'"),
    (lambda w: orthogonalize(w.matrix, ns_coefficients=[]), ValueError, "Coefficient list cannot be empty"),
    (lambda w: orthogonalize(w.matrix, ns_coefficients=3.0), TypeError, "Coefficients must be a preset .*got 3.0"),
    (lambda w: orthogonalize(w.matrix, ns_coefficients="cubic5", ns_steps=6), ValueError, "fixed sequence of 5 steps"),
    (lambda w: orthogonalize(w.matrix, eps=float("nan")), ValueError, "eps must be >= 0, got nan"),
    (lambda w: orthogonalize(w.matrix, safety_factor=0.0), ValueError, "safety_factor must be >= 1 .*got 0.0"),
    (lambda w: orthogonalize(w.matrix, compute_dtype=torch.int8), ValueError, "compute_dtype must be one of .*int8"),
]

KELLER_JORDAN = [
    (lambda w: keller_jordan.Muon(iter([w.fresh])), TypeError, "params must be a non-empty list of nn.Parameter, got"),
    (lambda w: keller_jordan.Muon([]), TypeError, "params must be a non-empty list"),
    (lambda w: keller_jordan.Muon([torch.zeros(2, 2)]), TypeError, "params must be a non-empty list of nn.Parameter"),
    (lambda w: keller_jordan.MuonWithAuxAdam([{"params": [w.fresh]}]), ValueError, "must have the key 'use_muon'"),
    (
        lambda w: keller_jordan.SingleDeviceMuonWithAuxAdam([{"params": [w.fresh], "use_muon": True, "betas": (0, 0)}]),
        ValueError,
        "use_muon=True may hold lr, momentum, weight_decay, got betas",
    ),
    (
        lambda w: keller_jordan.SingleDeviceMuonWithAuxAdam([{"params": [w.fresh], "use_muon": False, "nesterov": 1}]),
        ValueError,
        "use_muon=False may hold lr, betas, eps, weight_decay, got nesterov",
    ),
    (
        lambda w: keller_jordan.SingleDeviceMuon([nn.Parameter(torch.zeros(2, 4, 4)), w.conv]),
        ValueError,
        "3-D and 4-D parameters must be in groups of their own",
    ),
    (lambda w: keller_jordan.SingleDeviceMuon([w.fresh], lr=-1.0), ValueError, "lr must be >= 0 and finite, got -1.0"),
]

GRAM_NEWTON_SCHULZ = [
    ({"lr": -0.1}, ValueError, "lr must be >= 0 and finite, got -0.1"),
    ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), got 1.0"),
    ({"ns_epsilon": 0.0}, ValueError, "ns_epsilon must be > 0, got 0.0"),
    ({"ns_algorithm": "gram"}, ValueError, "ns_algorithm must be one of gram_newton_schulz, .*got 'gram'"),
    ({"ns_coefficients_preset": "PE"}, ValueError, "ns_coefficients_preset must be None or one of .*got 'PE'"),
    ({"ns_coefficients": [[1.0, 2.0]]}, ValueError, r"Coefficient must be length-3 of real numbers, got: \[1.0, 2.0\]"),
    ({"ns_coefficients": "quintic"}, ValueError, r"ns_coefficients must be a list of rows \(a, b, c\), got 'quintic'"),
    ({"ns_coefficients": (2.0, -1.5, 0.5)}, ValueError, r"must be a list of rows \(a, b, c\), got \(2.0, -1.5, 0.5\)"),
    ({"ns_coefficients": 3.0}, TypeError, "Coefficients must be a preset .*got 3.0"),
    ({"ns_max_batch_size": 0}, ValueError, "ns_max_batch_size must be None or a positive integer, got 0"),
    ({"gram_newton_schulz_num_restarts": -1}, ValueError, "num_restarts must be an integer >= 0, got -1"),
    (
        {"adjust_lr": "rms"},
        ValueError,
        "adjust_lr must be None, a function or one of rms_norm, spectral_norm, got 'rms'",
    ),
    ({"adjust_lr": 2.0}, ValueError, "adjust_lr must be None, .*got 2.0"),
    ({"scalar_optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(3))])}, TypeError, "torch.optim.AdamW, got SGD"),
]

COMPAT = [
    *(
        (lambda w, o=options: gram_newton_schulz.Muon([w.fresh], **o), error, m)
        for options, error, m in GRAM_NEWTON_SCHULZ
    ),
    (
        lambda w: gram_newton_schulz.Muon([{"params": [w.fresh], "param_split_fn": list}]),
        ValueError,
        "param_split_fn and param_recombine_fn must both be given",
    ),
    (
        lambda w: gram_newton_schulz.Muon([w.matrix], scalar_optimizer=adam(w, amsgrad=True)),
        ValueError,
        "must have amsgrad=False, got True",
    ),
    (
        lambda w: gram_newton_schulz.Muon(
            [nn.Parameter(torch.zeros(3, 3))], scalar_optimizer=adam(w, weight_decay=0.5)
        ),
        ValueError,
        "must have no weight decay, got 0.5",
    ),
    (
        lambda w: from_gram_newton_schulz({"state": {}, "param_groups": [{"params": [], "adjust_lr": "rms"}]}),
        ValueError,
        "adjust_lr must be None, .*got 'rms'",
    ),
    (
        lambda w: load_by_parameter(w.optimizer, ({"state": {}, "param_groups": [{"params": [0, 1]}]}, [w.matrix])),
        ValueError,
        "checkpoint 0 holds 2 parameters, got 1",
    ),
]

TABLE = ROUTING + LAYOUTS + OPTIMIZER + ORTHOGONALIZE + KELLER_JORDAN + COMPAT


@pytest.mark.parametrize(("call", "error", "message"), TABLE, ids=[message[:40] for _, _, message in TABLE])
def test_raises_and_changes_nothing(call, error, message):
    world = World()
    before = world.snapshot()
    with pytest.raises(error, match=message):
        call(world)
    assert_same(world.snapshot(), before)
    world.optimizer.step()


def test_the_table_is_long():
    assert len(TABLE) >= 40
