"""On 2 and on 4 ranks, however parameters lie: the bits of one process."""

import pytest
import torch
from distributed_jobs import EXPERT_LIES, EXPERTS, LIES, SHAPES, equals_one_process, explained, traffic

from muon_kernels.variants import NorMuon

DOUBLE = {"compute_dtype": torch.float64}
"""Products in float64 show what rounding to 16 bit would hide."""


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("kind", LIES)
def test_matrices(ranks, kind, world):
    ranks(world).run(equals_one_process, LIES[kind], SHAPES, DOUBLE, torch.float64)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("kind", EXPERT_LIES)
def test_experts(ranks, kind, world):
    ranks(world).run(equals_one_process, EXPERT_LIES[kind], EXPERTS, DOUBLE | {"layout": "batch"}, torch.float64)


@pytest.mark.parametrize("kind", ["FSDP", "HSDP, columns", "FSDP x TP, column-wise", "DDP, state in rows"])
@pytest.mark.parametrize(
    "options",
    [
        {"compute_dtype": torch.bfloat16},
        {"nesterov": False, "compute_dtype": torch.float32, "method": "gram", "max_workspace_bytes": 4096},
        {"method": "svd", "maximize": True, "adjust_lr_fn": "match_rms_adamw"},
        {"dtype": torch.bfloat16, "momentum_dtype": torch.float32, "lr": torch.tensor(0.03)},
        {"compute_dtype": torch.float16, "ns_coefficients": "polar_express"},
        {"dtype": torch.bfloat16, "master_dtype": torch.float32, "weight_decay_rule": "cautious"},
        {"preconditioning": "aol", "ns_coefficients": "turbo", "ns_steps": 4},
        {"normalizer": NorMuon(), "layout": "rows:1", "compute_dtype": torch.float32},
        {"normalizer": NorMuon(), "dtype": torch.bfloat16, "max_workspace_bytes": 4096},
    ],
    ids=[
        "bfloat16",
        "gram in waves",
        "svd",
        "16-bit parameters",
        "float16",
        "masters, cautious decay",
        "AOL",
        "NorMuon",
        "NorMuon in 16 bit",
    ],
)
def test_options(ranks, kind, options):
    ranks(4).run(equals_one_process, LIES[kind], SHAPES, options)


def test_second_moments_wherever_parameters_lie(ranks):
    for lies in LIES.values():
        ranks(2).run(equals_one_process, lies, SHAPES, DOUBLE | {"normalizer": NorMuon()}, torch.float64, 2)


@pytest.mark.parametrize(
    ("layout", "shapes", "kinds"),
    [
        ("qkv", [(21, 8), (15, 33)], ["FSDP", "FSDP, columns", "FSDP x TP, column-wise", "DDP"]),
        ("grid:2x3", [(14, 9), (2, 3)], ["FSDP", "FSDP x TP, row-wise"]),
        ((5, 1, 3), [(9, 12)], ["FSDP", "HSDP"]),
        ("flatten", [(7, 3, 2, 2), (2, 5, 3, 3)], ["FSDP", "HSDP", "DDP, state in rows"]),
        ("conv_batched", [(7, 3, 2, 2), (5, 2, 3)], ["FSDP", "FSDP, columns", "DDP"]),
    ],
    ids=str,
)
def test_layouts(ranks, layout, shapes, kinds):
    for kind in kinds:
        ranks(4).run(equals_one_process, LIES[kind], shapes, DOUBLE | {"layout": layout}, torch.float64, 3)


@pytest.mark.parametrize("shapes", [[], [(6, 4)], [(0, 5), (8, 3)]], ids=["none", "one", "an empty one"])
def test_few_matrices(ranks, shapes):
    ranks(4).run(equals_one_process, LIES["FSDP"], shapes, DOUBLE, torch.float64, 2)


EVEN = [(16, 32), (32, 16)] * 4
S = 2 * 8 * 16 * 32  # bytes of all matrices in 16 bit


@pytest.mark.parametrize(
    ("kind", "expected", "per_wave"),
    [
        ("FSDP", 2 * S * 3 / 16, 2),
        ("FSDP, columns", 2 * S * 3 / 16, 2),
        ("FSDP x TP, column-wise", 2 * S * 3 / 16, 2),
        ("FSDP x TP, row-wise", 2 * S * 3 / 16, 2),
        ("HSDP", 2 * (S / 4) / 2 + (S / 2) / 2, 3),
        ("DDP", S * 3 / 4, 1),
        ("DDP, state in rows", S * 3 / 16 + S * 3 / 4, 2),
    ],
)
@pytest.mark.parametrize("max_bytes", [2**24, 2**12])
def test_traffic(ranks, kind, expected, per_wave, max_bytes):
    """4 ranks, on average over them; an owner lacks 3/4 of a matrix (1/2 within one of two replicas)."""
    answers = ranks(4).run(
        traffic, LIES[kind], EVEN, {"compute_dtype": torch.bfloat16, "max_workspace_bytes": max_bytes}
    )
    for waves, calls in answers:
        assert waves == (1 if max_bytes > 2**20 else answers[0][0]) and (waves > 1) == (max_bytes < 2**20)
        assert [name for name, _ in calls].count("all_to_all_single") == per_wave * waves
        assert [name for name, _ in calls].count("all_gather") == 1 and len(calls) == per_wave * waves + 1
    sent = sum(size for _, calls in answers for name, size in calls if name == "all_to_all_single")
    assert sent / 4 == expected


UNEVEN = [(33, 64), (50, 41), (64, 30)] * 4


@pytest.mark.parametrize("kind", ["FSDP", "FSDP, columns", "FSDP x TP, column-wise", "FSDP x TP, row-wise", "HSDP"])
def test_traffic_of_uneven_shards(ranks, kind):
    """Beyond what an even cut would send at most 2 %: in and out 3/4 of a matrix, or 1/2 and a copy of each half."""
    answers = ranks(4).run(traffic, LIES[kind], UNEVEN, {"compute_dtype": torch.bfloat16})
    size = 2 * sum(rows * cols for rows, cols in UNEVEN)
    sent = sum(size for _, calls in answers for name, size in calls if name == "all_to_all_single")
    assert sent <= 1.02 * size * (2 if kind == "HSDP" else 1.5)


def test_experts_do_not_travel(ranks):
    options = {"compute_dtype": torch.bfloat16, "layout": "batch"}
    for _, calls in ranks(4).run(traffic, EXPERT_LIES["EP"], [(4, 8, 12), (8, 12, 6)], options):
        assert [name for name, _ in calls] == ["all_gather"]


def test_explain(ranks):
    tables = ranks(4).run(explained)
    assert all(table == tables[0] for table in tables)
    lines = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in tables[0].splitlines()]
    assert lines[0][-3:] == ["lies", "computed by", "KiB sent"]
    # 64 x 32 in 16 bit are 4 KiB, of which the owner lacks 3; in and out.
    assert lines[1][:2] == ["w", "64x32"] and lines[1][-3:] == ["Shard(dim=0) on 4", "owner 0", "6"]
    assert lines[2][-3:] == ["Replicate() on 4", "redundant 0, 1, 2, 3", "0"]
    assert lines[3] == ["mine", "3x4", "muon", "1 x 3x4", "1"]
