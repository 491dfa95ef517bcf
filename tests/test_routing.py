"""Which parameters go to Muon, as which matrices, with which reason."""

import logging
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizers import set_grads
from torch import nn

from muon_kernels import Muon, param_groups_for
from muon_kernels.routing import shape_reason


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((64, 128), "ok"),
        ((96, 3, 4, 4), "ok"),
        ((5, 5, 1, 1), "ok"),
        ((512, 4), "ok"),
        ((516, 4), "extreme_aspect_ratio:129.0"),
        ((4, 2048), "extreme_aspect_ratio:512.0"),
        ((64,), "insufficient_dims"),
        ((), "insufficient_dims"),
        ((64, 1), "insufficient_dims"),
        ((1, 196, 768), "leading_unit_dims"),
        ((32, 1, 3, 3), "leading_unit_dims"),
        ((3, 3), "min_dim_too_small:3"),
        ((2, 8, 8), "min_dim_too_small:2"),
    ],
)
def test_reason_of_a_shape(shape, reason):
    assert shape_reason(shape) == reason


def test_thresholds_of_a_shape():
    assert shape_reason((3, 3), min_dim_size=3) == "ok"
    assert shape_reason((64, 8), max_aspect_ratio=7.9) == "extreme_aspect_ratio:8.0"


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2)
        self.heads = nn.ModuleList(nn.Linear(16, 8) for _ in range(2))


class Conv1D(nn.Module):
    """As in transformers: a linear layer whose weight is [in, out]."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(16, 32))


class RootMeanSquareNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(16, 4))


class Net(nn.Module):
    """One of everything that the rules know."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16, bias=False)
        self.wte = nn.Embedding(40, 16)
        self.pos_embed = nn.Parameter(torch.zeros(10, 16))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.blocks = nn.ModuleList([Attention()])
        self.c_fc = Conv1D()
        self.experts = nn.Parameter(torch.zeros(2, 16, 8))
        self.norm = RootMeanSquareNorm()
        self.frozen = nn.Parameter(torch.zeros(16, 16), requires_grad=False)
        self.head = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10))


def routes(groups):
    """name -> (to Muon, reason, layout)"""
    return {
        name: (group["use_muon"], reason, group.get("layout"))
        for group in groups
        for (name, _), reason in zip(group["params"], group["reasons"], strict=True)
    }


def test_every_kind_of_parameter():
    assert routes(param_groups_for(Net())) == {
        "stem.weight": (True, "ok", "flatten"),
        "stem.bias": (False, "bias", None),
        "depthwise.weight": (False, "leading_unit_dims", None),
        "wte.weight": (False, "embedding", None),
        "pos_embed": (False, "embedding", None),
        "cls_token": (False, "embedding", None),
        "blocks.0.attn.in_proj_weight": (True, "ok", "qkv"),
        "blocks.0.attn.in_proj_bias": (False, "bias", None),
        "blocks.0.attn.out_proj.weight": (True, "ok", None),
        "blocks.0.attn.out_proj.bias": (False, "bias", None),
        "blocks.0.heads.0.weight": (True, "ok", None),
        "blocks.0.heads.0.bias": (False, "bias", None),
        "blocks.0.heads.1.weight": (True, "ok", None),
        "blocks.0.heads.1.bias": (False, "bias", None),
        "c_fc.weight": (True, "ok", "transposed"),
        "experts": (True, "ok", "batch"),
        "norm.gain": (False, "norm", None),
        "head.0.weight": (True, "ok", None),
        "head.0.bias": (False, "bias", None),
        "head.2.weight": (False, "head", None),
        "head.2.bias": (False, "bias", None),
    }


def heads(model):
    return [name for name, (_, reason, _) in routes(param_groups_for(model)).items() if reason == "head"]


def test_heads():
    linear = lambda: nn.Linear(8, 8)  # noqa: E731
    assert heads(nn.Sequential(linear(), nn.ReLU(), linear())) == ["2.weight"]
    assert heads(nn.ModuleDict({"fc1": linear(), "fc2": linear()})) == ["fc2.weight"]
    # A stack of equal blocks has no head: its last layer is a hidden one.
    assert heads(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)) == []
    assert heads(nn.ModuleDict({"lm_head": linear(), "last": linear()})) == ["lm_head.weight"]
    assert heads(nn.ModuleDict({"heads": nn.ModuleList([linear(), linear()]), "last": linear()})) == [
        "heads.0.weight",
        "heads.1.weight",
    ]
    assert heads(nn.ModuleDict({"head": nn.Sequential(OrderedDict(fc=linear(), out=linear()))})) == ["head.out.weight"]
    assert heads(nn.ModuleDict({"classifier": nn.Conv2d(8, 21, 1), "last": linear()})) == ["classifier.weight"]


def test_a_model_may_name_its_head():
    model = nn.ModuleDict({"head": nn.Linear(8, 8), "out": nn.Linear(8, 8)})
    model.get_output_embeddings = lambda: model["out"]
    assert heads(model) == ["out.weight"]
    model.get_output_embeddings = lambda: None
    assert heads(model) == ["head.weight"]


def test_a_tied_head_is_an_embedding_whatever_its_first_name():
    model = nn.ModuleDict({"lm_head": nn.Linear(8, 40, bias=False), "wte": nn.Embedding(40, 8), "fc1": nn.Linear(8, 8)})
    model["wte"].weight = model["lm_head"].weight
    assert routes(param_groups_for(model))["lm_head.weight"] == (False, "embedding", None)


def test_patterns_decide_before_modules_and_the_last_match_wins():
    groups = param_groups_for(
        Net(),
        use_muon={"*.weight": False, "blocks.*.weight": True, "wte.*": True},
        layout={"blocks.*.heads.*": "rows:4", "blocks.0.heads.1.*": "cols:2"},
    )
    found = routes(groups)
    assert found["head.0.weight"] == (False, "use_muon_pattern", None)
    assert found["wte.weight"] == (True, "use_muon_pattern", None)
    assert found["blocks.0.heads.0.weight"] == (True, "use_muon_pattern", "rows:4")
    assert found["blocks.0.heads.1.weight"] == (True, "use_muon_pattern", "cols:2")
    assert found["experts"] == (True, "ok", "batch")


def test_options_of_the_groups():
    groups = param_groups_for(Net(), muon={"lr": 0.02}, auxiliary={"lr": 3e-4, "weight_decay": 0.05})
    for group in groups:
        assert group["lr"] == (0.02 if group["use_muon"] else 3e-4)
    decay = {name: g.get("weight_decay") for g in groups for name, _ in g["params"]}
    assert decay["wte.weight"] == decay["head.2.weight"] == decay["depthwise.weight"] == 0.05
    assert decay["norm.gain"] == decay["stem.bias"] == decay["blocks.0.attn.in_proj_bias"] == 0.0
    assert decay["stem.weight"] is None


def test_without_a_model_flags_and_shapes_decide():
    p = [nn.Parameter(torch.zeros(s)) for s in [(8, 8), (8, 8, 3, 3), (8,), (40, 8), (8, 8), (8, 8), (8, 6)]]
    groups = param_groups_for(
        [
            {"params": p[:3], "lr": 0.1},
            {"params": p[3], "use_fallback": True},
            {"params": [p[4]], "use_muon": False},
            {"params": [p[5]], "use_muon": True, "weight_decay": 0.3},
            {"params": [p[6]], "layout": [6, 2]},
        ],
        muon={"lr": 0.5},
    )
    brief = [
        (g["use_muon"], g["reasons"], g.get("layout"), g.get("lr"), g.get("weight_decay"), len(g["params"]))
        for g in groups
    ]
    assert brief == [
        (True, ["ok"], None, 0.1, None, 1),
        (True, ["ok"], "flatten", 0.1, None, 1),
        (False, ["insufficient_dims"], None, 0.1, 0.0, 1),
        (False, ["use_fallback_flag"], None, None, None, 1),
        (False, ["use_muon_flag"], None, None, None, 1),
        (True, ["use_muon_flag"], None, 0.5, 0.3, 1),
        (True, ["ok"], (6, 2), 0.5, None, 1),
    ]
    assert not any("use_fallback" in g for g in groups)
    assert len(param_groups_for(iter(p[:2]))) == len(param_groups_for(p[:2])) == 2


def test_muon_takes_the_groups_and_explains_them():
    torch.manual_seed(0)
    model = Net()
    optimizer = Muon(param_groups_for(model, muon={"lr": 0.02}, auxiliary={"lr": 3e-4}))
    table = {line.split()[0]: line.split() for line in optimizer.explain().splitlines()}
    assert table["parameter"][-1] == "reason"
    assert table["experts"] == ["experts", "2x16x8", "muon", "2", "x", "16x8", "1.414", "ok"]
    assert table["blocks.0.attn.in_proj_weight"][2:6] == ["muon", "3", "x", "16x16"]
    assert table["c_fc.weight"] == ["c_fc.weight", "16x32", "muon", "1", "x", "32x16", "1.414", "ok"]
    assert table["wte.weight"][2:] == ["adamw", "1", "embedding"]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(params) == sum(p.requires_grad for p in model.parameters())
    set_grads(params, 0)
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(params, before, strict=True))
    other = Muon(param_groups_for(model))
    other.load_state_dict(optimizer.state_dict())
    assert other.explain() == optimizer.explain()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shapes=st.lists(st.lists(st.sampled_from([1, 3, 4, 6, 600]), max_size=4), min_size=1, max_size=6),
    flags=st.lists(st.sampled_from([None, "use_fallback"]), min_size=6, max_size=6),
    trained=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_every_trainable_parameter_is_in_one_group_that_muon_takes(shapes, flags, trained):
    trained[0] = True
    params = [nn.Parameter(torch.zeros(s), requires_grad=t) for s, t in zip(shapes, trained, strict=False)]
    source = [{"params": [p]} | ({flag: True} if flag else {}) for p, flag in zip(params, flags, strict=False)]
    groups = param_groups_for(source)
    taken = [p for group in Muon(groups).param_groups for p in group["params"]]
    assert sorted(map(id, taken)) == sorted(id(p) for p in params if p.requires_grad)
    for group in groups:
        assert len(group["reasons"]) == len(group["params"])
        for p, reason in zip(group["params"], group["reasons"], strict=True):
            assert group["use_muon"] == (reason == "ok")
            assert reason in ("use_fallback_flag", shape_reason(p.shape))


def test_summary(caplog):
    with caplog.at_level(logging.INFO, logger="muon_kernels.routing"):
        param_groups_for([nn.Parameter(torch.zeros(8, 8))])
        assert not caplog.records
        shapes = [(64, 128)] + [(16 + i, 8) for i in range(11)] + [(516, 4), (8,), (8,)]
        named = [(f"p{i}", nn.Parameter(torch.zeros(s))) for i, s in enumerate(shapes)]
        groups = [{"params": named}, {"params": [("off", nn.Parameter(torch.zeros(8, 8)))], "use_muon": False}]
        groups += [{"params": [("on", nn.Parameter(torch.zeros(8, 8)))], "use_muon": True}]
        param_groups_for(groups, verbose=True)
    lines = caplog.records[0].getMessage().splitlines()
    assert lines[:6] == [
        "Muon parameter routing: 13 Muon, 4 AdamW",
        "  Breakdown: extreme_aspect_ratio:129.0=1, insufficient_dims=2, ok=12, use_muon_flag=1, use_muon_flag=1",
        "    extreme_aspect_ratio:129.0 -> AdamW:",
        "      516x4  p12",
        "    insufficient_dims -> AdamW:",
        "      8  p13",
    ]
    assert lines[7] == "    ok -> Muon:" and lines[18:] == [
        "      ... and 2 more",
        "    use_muon_flag -> AdamW:",
        "      8x8  off",
        "    use_muon_flag -> Muon:",
        "      8x8  on",
    ]
