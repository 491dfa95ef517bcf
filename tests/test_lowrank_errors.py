"""decide_rank's table, and bad input to LowRankMuon, which raises before anything has changed."""

import pytest
import torch
from optimizers import make_params, set_grads
from stub_backend import stub_backend
from torch import nn

from muon_kernels import BackendUnavailable, Muon, use_backend
from muon_kernels.lowrank import LowRankMuon, decide_rank

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("kind", [float, torch.tensor, lambda x: torch.tensor([x], dtype=torch.float64)])
@pytest.mark.parametrize(
    ("loss", "max_loss", "max_rank", "rank"),
    [
        (2.9734, None, 4, 4),
        (2.9734, 0.0, 4, 4),
        (1.0, 2.0, 8, 4),
        (0.99, 2.0, 8, 3),
        (0.01, 2.0, 8, 1),
        (3.0, 2.0, 8, 8),
        (0.0, None, 8, 1),
        (0.0, 2.0, 8, 1),
        (-1.0, 2.0, 8, 1),
        (-1.0, None, 8, 1),
        (NAN, None, 8, 8),
        (NAN, 2.0, 8, 8),
        (INF, 2.0, 8, 8),
        (-INF, None, 8, 8),
        (1e30, 1e-30, 8, 8),
        (1e-30, 1e30, 8, 1),
        (1.0, 1.0, 1, 1),
    ],
)
def test_table(kind, loss, max_loss, max_rank, rank):
    got = decide_rank(kind(loss), None if max_loss is None else kind(max_loss), max_rank)
    assert got == rank and type(got) is int


def test_min_rank_and_gradients():
    assert decide_rank(0.1, 2.0, 8, 3) == decide_rank(0.0, 2.0, 8, 3) == 3
    assert decide_rank(torch.tensor(1.0, requires_grad=True), 2.0) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2),), r"loss must be a number or a one-element tensor, got shape \[2\]"),
        ((1.0, torch.ones(2, 1)), r"max_loss must be a number or a one-element tensor, got shape \[2, 1\]"),
        ((1.0, -2.0), "max_loss must be None or finite and >= 0, got -2.0"),
        ((1.0, NAN), "max_loss must be None or finite and >= 0, got nan"),
        ((1.0, 2.0, 0), "max_rank must be an integer >= 1, got 0"),
        ((1.0, 2.0, 2.5), "max_rank must be an integer >= 1, got 2.5"),
        ((1.0, 2.0, True), "max_rank must be an integer >= 1, got True"),
        ((1.0, 2.0, 8, 0), "min_rank must be an integer >= 1, got 0"),
        ((1.0, 2.0, 8, 9), "min_rank must not be above max_rank, got 9 and 8"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        decide_rank(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be >= 0 and finite, got -1.0"),
        ({"weight_decay": INF}, "weight_decay must be >= 0 and finite, got inf"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"beta2": -0.1}, r"beta2 must be in \[0, 1\), got -0.1"),
        ({"eps": 0.0}, "eps must be > 0 and finite, got 0.0"),
        ({"max_rank": 0}, "max_rank must be an integer >= 1, got 0"),
        ({"min_rank": 1.5}, "min_rank must be an integer >= 1, got 1.5"),
        ({"max_rank": 2, "min_rank": 3}, "min_rank must not be above max_rank, got 3 and 2"),
        ({"max_loss": NAN}, "max_loss must be None or finite and >= 0, got nan"),
        ({"ns_coefficients": "quintics"}, "Unknown coefficients preset 'quintics'"),
        ({"ns_steps": 100}, r"ns_steps must be in \[0, 100\), got 100"),
        ({"adjust_lr_fn": "spectral"}, "adjust_lr_fn must be None, a callable or one of .*got 'spectral'"),
        ({"method": "polar"}, "method must be one of .*got 'polar'"),
        ({"method": "squaring", "ns_steps": 3}, "ns_steps must be left at 5, got 3"),
        ({"compute_dtype": torch.int32}, "compute_dtype must be one of .*got torch.int32"),
    ],
)
def test_bad_options(options, message):
    params = make_params(torch.float32, [(4, 6)] * 2)
    with pytest.raises(ValueError, match=message):
        LowRankMuon(params[:1], **options)
    optimizer = LowRankMuon(params[:1])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": params[1:], **options})
    assert len(optimizer.param_groups) == 1
    set_grads(params, 0)
    before = params[0].detach().clone()
    optimizer.param_groups[0].update(options)
    with pytest.raises(ValueError, match=message):
        optimizer.step(loss=1.0)
    assert torch.equal(params[0], before) and not optimizer.state


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.zeros(3), ValueError, r"only supports 2-D parameters, got shape \[3\] as parameter 1"),
        (torch.zeros(2, 3, 4), ValueError, r"only supports 2-D parameters, got shape \[2, 3, 4\] as parameter 1"),
        (torch.zeros(2, 2, dtype=torch.complex64), TypeError, r"must be real floating point, got torch.complex64"),
    ],
)
def test_bad_parameters(bad, error, message):
    good = make_params(torch.float32, [(4, 6)] * 2)
    optimizer = LowRankMuon(good[:1])
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": [good[1], nn.Parameter(bad)]})
    assert len(optimizer.param_groups) == 1


def spoil_sparse(p):
    p.grad = torch.eye(4, 6).to_sparse()


def spoil_shape(p):
    p.grad.data = torch.zeros(2, 2)


def spoil_nothing(p):
    pass


@pytest.mark.parametrize(
    ("spoil", "arguments", "error", "message"),
    [
        (spoil_sparse, {}, RuntimeError, "does not support sparse gradients, got torch.sparse_coo"),
        (spoil_shape, {}, RuntimeError, r"must match its parameter \(\[4, 6\] on cpu\), got \[2, 2\] on cpu"),
        (spoil_nothing, {"loss": torch.ones(3)}, ValueError, r"loss must be .* one-element tensor, got shape \[3\]"),
        (spoil_nothing, {"loss": 2.0, "closure": lambda: 1.0}, ValueError, "takes a closure or a loss, got both"),
        (spoil_nothing, {"closure": lambda: torch.ones(3)}, ValueError, r"loss must be .*got shape \[3\]"),
    ],
)
def test_a_bad_step_raises_before_anything_changes(spoil, arguments, error, message):
    good, bad = make_params(torch.float32, [(4, 6)] * 2)
    optimizer = LowRankMuon([{"params": [good]}, {"params": [bad]}], lr=0.1)
    set_grads([good, bad], 0)
    optimizer.step(loss=1.0)
    before = [t.clone() for p in (good, bad) for t in (p.detach(), *optimizer.state[p].values())]
    spoil(bad)
    with pytest.raises(error, match=message):
        optimizer.step(**{"loss": 50.0} | arguments if "closure" not in arguments else arguments)
    after = [t for p in (good, bad) for t in (p.detach(), *optimizer.state[p].values())]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert [group["max_loss"] for group in optimizer.param_groups] == [1.0, 1.0]


@pytest.mark.parametrize("other", [Muon, torch.optim.AdamW])
def test_a_state_of_another_optimizer_raises_before_anything_changes(other):
    params = make_params(torch.float32, [(4, 6)] * 2)
    theirs = other(params[1:])
    set_grads(params, 0)
    theirs.step()
    before = [p.detach().clone() for p in params]
    optimizer = LowRankMuon([{"params": params[:1]}, {"params": params[1:]}])
    optimizer.state[params[1]].update(theirs.state[params[1]])
    with pytest.raises(ValueError, match=r"the state of a parameter of shape \[4, 6\] must be like .*left_avg.*, got "):
        optimizer.step(loss=1.0)
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True)) and not optimizer.state.get(params[0])


def test_a_rule_that_raises_leaves_everything_as_it_was():
    def rule(shape):
        raise ArithmeticError

    params = make_params(torch.float32, [(4, 6)] * 2)
    optimizer = LowRankMuon([{"params": params[:1]}, {"params": params[1:], "adjust_lr_fn": rule}])
    set_grads(params, 0)
    before = [p.detach().clone() for p in params]
    with pytest.raises(ArithmeticError):
        optimizer.step(loss=1.0)
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert not optimizer.state and optimizer.param_groups[0]["max_loss"] is None


@pytest.fixture
def two_dtypes():
    """Two groups, whose second one alone is of float64."""
    groups = [{"params": make_params(dtype, [(6, 8), (4, 4)])} for dtype in (torch.float32, torch.float64)]
    optimizer = LowRankMuon(groups, compute_dtype=torch.float16)
    set_grads([p for group in groups for p in group["params"]], 0)
    return optimizer


@pytest.mark.parametrize("options", [{}, {"method": "svd"}, {"method": "squaring"}, {"ns_steps": 0}])
def test_what_a_step_asks_a_backend_for_was_asked_before(two_dtypes, options):
    for group in two_dtypes.param_groups:
        group.update(options)
    with stub_backend() as stub, use_backend("cuda"):
        two_dtypes.step()
        assert stub.before == stub.within != set()


@pytest.mark.parametrize("op", ["normalize", "chains", "apply"])
def test_a_backend_that_refuses_an_op_leaves_everything_as_it_was(two_dtypes, op):
    params = [p for group in two_dtypes.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in params]
    with stub_backend() as stub, use_backend("cuda"), pytest.raises(BackendUnavailable, match=f"no such {op}"):
        stub.refuses = lambda name, dtypes: name == op and (op == "chains" or torch.float64 in dtypes)
        two_dtypes.step()
    assert all(map(torch.equal, params, before)) and not two_dtypes.state
