"""Stochastic rounding: neighbours with the right probabilities; and whatever else an optimizer does with its state."""

import copy
import io
import math
import pickle

import pytest
import torch
from optimizers import make_params, run, set_grads
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import muon_kernels.schedule
from muon_kernels import Muon
from muon_kernels.checks import check_shared
from muon_kernels.compat import load_by_parameter, to_torch
from muon_kernels.matrices import split
from muon_kernels.variants import Int8Momentum, NorMuon
from muon_kernels.variants.rounding import rounding_keys, stochastically_rounded

OPTIONS = {"lr": 0.01, "weight_decay": 0.1, "rounding": "stochastic"}
CASES = [
    ((24, 16), None), ((24, 16), None), ((7, 33), None), ((1, 9), None), ((8, 4, 3, 3), "flatten"),
    ((6, 5, 2, 2), "conv_batched"), ((3, 10, 6), "batch"), ((12, 20), "transposed"), ((18, 6), "qkv"),
    ((8, 12), "grid:2x3"),
]  # fmt: skip
"""(shape, layout) of the parameters with Muon; a vector and a table, with AdamW and NAdam, follow."""


def build(params=None, **options):
    """Muon, AdamW and NAdam in one."""
    if params is None:
        params = make_params(torch.bfloat16, [*(shape for shape, _ in CASES), (7,), (5, 3)])
    groups = [{"params": [p], "layout": layout} for p, (_, layout) in zip(params, CASES, strict=False)]
    groups += [{"params": [params[-2]], "use_muon": False}]
    groups += [{"params": [params[-1]], "use_muon": False, "algorithm": "nadam"}]
    return Muon(groups, **OPTIONS | options)


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def tensors_of(optimizer):
    """Copies of all that a step may change."""
    return [t.detach().clone() for p in params_of(optimizer) for t in (p, *optimizer.state[p].values())]


def assert_equal(a, b):
    assert len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def rounded(values, key=1234):
    """Float32 values as bfloat16."""
    param = torch.zeros(values.shape, dtype=torch.bfloat16)
    with stochastically_rounded([param], [torch.tensor(key)], None) as copies:
        copies[0].copy_(values)
    return param


def neighbours(values):
    """The bfloat16 numbers toward zero and away from it, as float64, of values that bfloat16 does not have."""
    below = (values.view(torch.int32) & -0x10000).view(torch.float32)
    return below.double(), ((values.view(torch.int32) | 0xFFFF) + 1).view(torch.float32).double()


def test_a_draw_is_a_neighbour_and_the_mean_is_the_value():
    draws = 2**14
    values = torch.cat([torch.randn(60) * torch.logspace(-38, 38, 60), torch.tensor([0.4, -0.4, 1e-40, -1e-40])])
    below, above = neighbours(values)
    found = rounded(values.expand(draws, -1)).double()
    assert ((found == below) | (found == above)).all()
    share = (found == above).double().mean(0)
    expected = (values.double() - below) / (above - below)
    deviation = (expected * (1 - expected) / draws).sqrt().clamp(min=0.5 / draws)
    assert ((share - expected).abs() <= 5 * deviation).all()


def test_one_element_over_many_steps():
    draws, values = 4000, torch.tensor([[0.4, -0.3001, 1.0001, 300.7]])
    key, sums = torch.tensor(-77), torch.zeros(1, 4, dtype=torch.float64)
    ups = []
    below, above = neighbours(values)
    for _ in range(draws):
        param = torch.zeros(1, 4, dtype=torch.bfloat16)
        with stochastically_rounded([param], [key], None) as copies:
            copies[0].copy_(values)
        ups.append(param == above.bfloat16())
        sums += param.double()
    ups = torch.cat(ups).double()
    expected = (values.double() - below) / (above - below)
    assert ((ups.mean(0) - expected).abs() <= 5 * (expected * (1 - expected) / draws).sqrt()).all()
    centred = ups - ups.mean(0)
    neighbour = (centred[1:] * centred[:-1]).mean(0) / centred.square().mean(0)
    assert (neighbour.abs() <= 5 / draws**0.5).all()  # steps do not know of each other
    assert (torch.corrcoef(ups.T).fill_diagonal_(0).abs() <= 5 / draws**0.5).all()  # nor do elements


def test_the_random_bits_are_uniform():
    """Every bit, pairs of neighbours, halves of one hash, and those of one key and the next."""
    count = 2**16
    bits = []
    key = torch.tensor(5)
    for _ in range(2):
        values = torch.full((count,), 1.0)
        low = torch.zeros(count, dtype=torch.int32)
        for bit in reversed(range(16)):  # rounds up as soon as what is added reaches the rest: 16 comparisons find it
            trial = low + (1 << bit)
            values = (torch.tensor(0x3F800000, dtype=torch.int32) + 0x10000 - trial).view(torch.float32)
            param = torch.zeros(count, dtype=torch.bfloat16)
            with stochastically_rounded([param], [key.clone()], None) as copies:
                copies[0].copy_(values)
            low = torch.where(param > 1.0, trial, low)
        bits.append(low)
        with stochastically_rounded([param], [key], None):
            pass
    first, second = ((b[:, None] >> torch.arange(16)) & 1 for b in bits)
    tolerance = 5 * 0.5 / count**0.5
    for both in (first, first ^ first.roll(1, 0), first ^ first.roll(2, 0), first ^ second):
        assert ((both.double().mean(0) - 0.5).abs() <= tolerance).all()
    counts = torch.bincount(bits[0] >> 8, minlength=256).double()
    assert ((counts - count / 256).square() / (count / 256)).sum() <= 255 + 5 * (2 * 255) ** 0.5


def test_what_bfloat16_has_stays():
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    every = patterns.view(torch.bfloat16)
    numbers = ~every.isnan()
    found = rounded(every.float())
    assert torch.equal(found.view(torch.int16)[numbers], patterns[numbers])
    assert found[~numbers].isnan().all()


@pytest.mark.parametrize("pattern", [0x7F800001, 0x7FFFFFFF, -0x7FFFFF, -1])
def test_every_nan_stays_nan(pattern):
    values = torch.full((1000,), pattern, dtype=torch.int32).view(torch.float32)
    assert values.isnan().all() and rounded(values).isnan().all()


@pytest.mark.parametrize("use_muon", [True, False])
def test_steps_below_the_last_bit_move_it_on_average(use_muon):
    """Near 0.4 the last bit is 2^-9 and half of it 0.00098; the steps below are a tenth of that."""
    steps, start = 100, torch.full((64, 64), 0.4).bfloat16()
    ends = {}
    for name, dtype, rounding in (
        ("exact", torch.float32, "nearest"),
        ("nearest", torch.bfloat16, "nearest"),
        ("stochastic", torch.bfloat16, "stochastic"),
    ):
        p = nn.Parameter(start.to(dtype, copy=True))
        rule = lambda shape: 64.0  # noqa: E731  # the update's elements are about 1/64
        options = {"lr": 1e-4, "weight_decay": 0.0, "rounding": rounding, "adjust_lr_fn": rule}
        options |= dict.fromkeys(["compute_dtype", "momentum_dtype"], torch.float32)  # the same updates for all three
        optimizer = Muon([{"params": [p], "use_muon": use_muon}], **options)
        direction = torch.ones(64, 64)
        for _ in range(steps):
            p.grad = direction.to(dtype)
            optimizer.step()
        ends[name] = p.detach().double()
    moved = {name: (end - start.double()).mean().item() for name, end in ends.items()}
    assert abs(moved["exact"]) > 0.004
    assert moved["nearest"] == 0.0
    # The end of a walk of 100 steps, each of variance <= 0.05 of the last bit, over 4096 elements.
    assert abs(moved["stochastic"] - moved["exact"]) <= 5 * 2**-9 * (steps * 0.05 / 4096) ** 0.5
    assert len(ends["stochastic"].unique()) > 2


@pytest.mark.parametrize("max_bytes", [None, 1])
@pytest.mark.parametrize("momentum_store", [None, Int8Momentum(32)])
def test_as_if_each_matrix_were_alone(momentum_store, max_bytes):
    """The random numbers of a matrix do not depend on what else is stepped."""
    options = {"momentum_store": momentum_store, "compute_dtype": torch.float32, "lr": 0.01}
    together = build(max_workspace_bytes=max_bytes, **options)
    params = params_of(together)[: len(CASES)]
    alone = [[nn.Parameter(v.detach().clone()) for v in split(p, c[1])] for p, c in zip(params, CASES, strict=True)]
    singles = [[Muon([q], **OPTIONS | options) for q in parts] for parts in alone]
    set_grads(params_of(together), 0)
    for p, parts, own, (_, layout) in zip(params, alone, singles, CASES, strict=True):
        for q, grad, single in zip(parts, split(p.grad, layout), own, strict=True):
            q.grad = grad.clone()
            if layout == "conv_batched":
                single.param_groups[0] |= {"lr": 0.01 / 2, "weight_decay": 0.1 * 2}
            single.step()
    together.step()
    for p, parts, (_, layout) in zip(params, alone, CASES, strict=True):
        for view, q in zip(split(p.detach(), layout), parts, strict=True):
            # Products of other strides may differ in their last bits, which turns few draws.
            assert (view != q).double().mean() <= 0.02
            assert (view.double() - q.double()).abs().max() <= 2**-7 * q.abs().max()


@pytest.mark.parametrize("normalizer", [None, NorMuon()])
@pytest.mark.parametrize("rule", ["decoupled", "cautious"])
def test_beside_exact_copies(normalizer, rule):
    """After one step a neighbour of what masters hold exactly, with every other part."""
    options = {"normalizer": normalizer, "weight_decay_rule": rule, "momentum_dtype": torch.float32}
    stochastic, exact = build(**options), build(rounding="nearest", master_dtype=torch.float32, **options)
    run(stochastic, 1)
    run(exact, 1)
    nearest = 0
    for p, q in zip(params_of(stochastic), params_of(exact), strict=True):
        master = exact.state[q]["master"]
        below, above = neighbours(master)
        on_it = p.detach() == master
        assert (on_it | (p.detach() == below) | (p.detach() == above)).all()
        nearest += (p == q).sum().item()
    total = sum(p.numel() for p in params_of(exact))
    assert 0.6 * total < nearest < 0.9 * total  # three quarters on average


def test_a_step_that_the_scaler_skips_leaves_every_bit():
    optimizer = build()
    run(optimizer, 1)
    before = tensors_of(optimizer)
    optimizer.found_inf, optimizer.grad_scale = torch.tensor(1.0), torch.tensor(4.0)
    run(optimizer, 1)
    assert_equal(tensors_of(optimizer), before)
    optimizer.found_inf.zero_()
    run(optimizer, 1)
    assert not any(torch.equal(a, b) for a, b in zip(tensors_of(optimizer), before, strict=True))


def through_state_dict(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = build([nn.Parameter(p.detach().clone()) for p in params_of(optimizer)])
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@pytest.mark.parametrize("copied", [through_state_dict, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_continues_bitwise(copied):
    optimizer = build()
    run(optimizer, 3)
    other = copied(optimizer)
    torch.randn(17)  # not torch's generator either
    run(optimizer, 2, first=3)
    run(other, 2, first=3)
    assert_equal(tensors_of(other), tensors_of(optimizer))


def test_replicas_agree_whatever_their_seeds():
    first, second = build(), build()
    for optimizer, seed in ((first, 1), (second, 2)):
        torch.manual_seed(seed)
        run(optimizer, 3)
    assert_equal(tensors_of(first), tensors_of(second))


def test_states_by_parameter_hold_keys():
    optimizer = build()
    run(optimizer, 2)
    params = params_of(optimizer)
    other = build(params)
    load_by_parameter(other, (optimizer.state_dict(), params))
    assert_equal(tensors_of(other), tensors_of(optimizer))
    spoiled = optimizer.state_dict()
    spoiled["state"][6]["rounding_key"] = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"must have a 'rounding_key' of shape \[3\], got \[5\]"):
        load_by_parameter(other, (spoiled, params))


def test_torch_goes_on_without_keys():
    params = make_params(torch.bfloat16, [(8, 6), (5,)])
    optimizer = Muon([{"params": params[:1]}, {"params": params[1:], "use_muon": False}], **OPTIONS)
    run(optimizer, 2)
    muon, adamw = to_torch(optimizer.state_dict())
    assert set(muon["state"][0]) == {"momentum_buffer"} and set(adamw["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    for kind, part, p in ((torch.optim.Muon, muon, params[0]), (torch.optim.AdamW, adamw, params[1])):
        theirs = kind([p])
        theirs.load_state_dict(part)
        run(theirs, 1)


@pytest.mark.parametrize("options", [{"rounding": "stochastic"}, {"master_dtype": torch.float32}])
def test_averages_of_a_bfloat16_checkpoint_become_float32_and_back(options):
    p = nn.Parameter(torch.ones(40, dtype=torch.bfloat16))
    plain = Muon([{"params": [p], "use_muon": False}], lr=0.01)
    run(plain, 2)
    optimizer = Muon([{"params": [p], "use_muon": False}], lr=0.01, **options)
    load_by_parameter(optimizer, (plain.state_dict(), [p]))
    run(optimizer, 1, first=2)
    assert {optimizer.state[p][key].dtype for key in ("exp_avg", "exp_avg_sq")} == {torch.float32}
    state = {key: value for key, value in optimizer.state[p].items() if key in plain.state[p]}
    plain.load_state_dict({"state": {0: state}, "param_groups": plain.state_dict()["param_groups"]})
    run(plain, 1, first=3)
    assert {plain.state[p][key].dtype for key in ("exp_avg", "exp_avg_sq")} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounding": "up"}, "rounding must be one of nearest, stochastic, got 'up'"),
        ({"master_dtype": torch.float32}, "rounding 'stochastic' needs master_dtype None, got torch.float32"),
    ],
)
@pytest.mark.parametrize("use_muon", [True, False])
def test_options_out_of_range(use_muon, options, message):
    with pytest.raises(ValueError, match=message):
        Muon([{"params": make_params(torch.bfloat16, [(4, 6)]), "use_muon": use_muon}], **OPTIONS | options)


@pytest.mark.parametrize("use_muon", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_only_bfloat16(dtype, use_muon):
    optimizer = Muon(make_params(torch.bfloat16, [(4, 6)]), **OPTIONS)
    message = rf"rounding 'stochastic' needs bfloat16 parameters, got {dtype} for shape \[5, 6\]"
    with pytest.raises(TypeError, match=message):
        optimizer.add_param_group({"params": make_params(dtype, [(5, 6)]), "use_muon": use_muon})
    assert len(optimizer.param_groups) == 1
    good, bad = make_params(torch.bfloat16, [(4, 6), (5, 6)])
    optimizer = Muon([{"params": [good]}, {"params": [bad], "use_muon": use_muon}], **OPTIONS)
    run(optimizer, 1)
    bad.data = bad.data.to(dtype)
    before = tensors_of(optimizer)
    with pytest.raises(TypeError, match=message):
        run(optimizer, 1)
    assert_equal(tensors_of(optimizer), before)


def test_a_key_of_another_shape_raises_before_anything_changes():
    params = make_params(torch.bfloat16, [(4, 6), (5, 6)])
    optimizer = Muon(params, **OPTIONS)
    run(optimizer, 1)
    optimizer.state[params[1]]["rounding_key"] = torch.zeros(3, dtype=torch.int64)
    before = tensors_of(optimizer)
    with pytest.raises(ValueError, match=r"rounding_key must have shape \[1\], one a matrix, got \[3\]"):
        run(optimizer, 1)
    assert_equal(tensors_of(optimizer), before)


@pytest.mark.parametrize("use_muon", [True, False])
def test_refused_where_ranks_share(use_muon):
    optimizer = Muon([{"params": make_params(torch.bfloat16, [(4, 6)]), "use_muon": use_muon}], **OPTIONS)
    message = "rounding must be nearest for parameters that several ranks share, got stochastic"
    with pytest.raises(ValueError, match=message):
        check_shared(optimizer.param_groups[0])


def test_state_and_gradients():
    optimizer = build()
    p, empty = params_of(optimizer)[0], nn.Parameter(torch.zeros(0, 4, dtype=torch.bfloat16))
    optimizer.add_param_group({"params": [empty]})
    optimizer.add_param_group({"params": [nn.Parameter(empty.detach().clone())], "use_muon": False})
    set_grads(params_of(optimizer), 0)
    p.grad = None
    grads = [q.grad.clone() for q in params_of(optimizer)[1:]]
    optimizer.step()
    assert p not in optimizer.state
    assert_equal([q.grad for q in params_of(optimizer)[1:]], grads)
    experts, vector = params_of(optimizer)[6], params_of(optimizer)[10]
    assert set(optimizer.state[experts]) == {"momentum_buffer", "rounding_key"}
    assert optimizer.state[experts]["rounding_key"].shape == (3,)
    assert len(optimizer.state[experts]["rounding_key"].unique()) == 3
    assert set(optimizer.state[vector]) == {"step", "exp_avg", "exp_avg_sq", "rounding_key"}
    assert optimizer.state[vector]["exp_avg"].dtype == torch.float32


def test_copies_count_as_scratch_memory(monkeypatch):
    needs = []
    plan = muon_kernels.schedule.plan_waves
    monkeypatch.setattr(muon_kernels.schedule, "plan_waves", lambda s, n, m: needs.append(n) or plan(s, n, m))
    for rounding in ("nearest", "stochastic"):
        run(Muon(make_params(torch.bfloat16, [(24, 40), (8, 6)]), rounding=rounding), 1)
    assert [b - a for a, b in zip(*needs, strict=True)] == [13 * 24 * 40, 13 * 8 * 6]


def test_nothing_reads_a_value_on_the_host():
    with FakeTensorMode():
        params = [torch.zeros(6, 5, dtype=torch.bfloat16), torch.zeros(7, dtype=torch.bfloat16)]
        keys = [key for p in params for key in rounding_keys({}, [p])]
        with stochastically_rounded(params, keys, torch.zeros(1)) as copies:
            copies[0].add_(1.0)


def test_the_numbers_are_those_of_the_formula():
    """The hash in Python's integers."""

    def mixed(x):
        for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
            x = ((x ^ x >> shift) * factor) % 2**32
        return x ^ x >> 15

    key = -(10**10)
    values = torch.rand(3, 5)
    found = rounded(values, key).flatten()
    for i, value in enumerate(values.flatten()):
        half = mixed((i // 2 + key) % 2**32)
        random = half % 2**16 if i % 2 == 0 else half >> 16
        bits = (value.view(torch.int32).item() + random) & ~0xFFFF
        assert found[i].float().view(torch.int32).item() == bits
    assert math.isfinite(found.sum())
