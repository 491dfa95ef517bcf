"""What the ranks of a pool give to a constructor that must refuse it."""

from __future__ import annotations

import torch
from distributed_jobs import EXPERT_LIES, LIES
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Shard

from muon_kernels import Muon
from muon_kernels.lowrank import LowRankMuon
from muon_kernels.variants import AdaMuon, Int8Momentum


def refused_at_construction() -> list[str]:
    """Placements and layouts that have no plan; the error leaves the optimizer as it was."""
    mesh = LIES["FSDP"].mesh()
    good = nn.Parameter(LIES["FSDP"].put(torch.zeros(4, 4), mesh))
    optimizer = Muon([good])
    partial = DTensor.from_local(torch.zeros(4, 4), mesh, [Partial()], run_check=False)
    uneven = DTensor.from_local(torch.zeros(7, 4), mesh, [Shard(0)], run_check=False, shape=(18, 4), stride=(4, 1))
    conv = EXPERT_LIES["FSDP on columns"].put(torch.zeros(4, 3, 4), mesh)
    rows = LIES["FSDP"].put(torch.zeros(4, 4), mesh)
    texts = []
    for bad, layout in [
        (partial, None),
        (uneven, None),
        (conv, "flatten"),
        (rows, lambda t: [t[::2], t[1::2]]),
        (conv, None),
    ]:
        try:
            optimizer.add_param_group({"params": [nn.Parameter(bad)], "layout": layout})
        except (RuntimeError, ValueError) as error:
            texts.append(f"{type(error).__name__}: {error}")
        assert len(optimizer.param_groups) == 1 and list(optimizer.state) == [good]
    return texts


def variants_at_construction(kind: str) -> list[str]:
    """One text for each option; groups without Muon do not mind."""
    lies = LIES[kind]
    make = lambda: nn.Parameter(lies.put(torch.ones(4, 4), lies.mesh()))  # noqa: E731
    optimizer = Muon([make()], **lies.options())
    texts = []
    for options in (
        {"momentum_store": Int8Momentum()},
        {"normalizer": AdaMuon()},
        {"period": 2, "layout": "rows:2"},
    ):
        try:
            optimizer.add_param_group({"params": [make()], **options})
        except ValueError as error:
            texts.append(str(error))
        assert len(optimizer.param_groups) == 1 and len(optimizer.state) == 1
        Muon([{"params": [make()], "use_muon": False}], **options, **lies.options())
    return texts


def wrong_process_group() -> str:
    try:
        Muon([nn.Parameter(torch.zeros(2, 2))], process_group=LIES["HSDP"].mesh())
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was raised")


def stochastic_rounding() -> list[str]:
    """Of parameters that several ranks share, as DTensors and as plain tensors, with Muon and without."""
    raised = []
    for use_muon in (True, False):
        for lies in (LIES["FSDP"], LIES["DDP"]):
            p = nn.Parameter(lies.put(torch.zeros(4, 4, dtype=torch.bfloat16), lies.mesh()))
            try:
                Muon([{"params": [p], "use_muon": use_muon}], rounding="stochastic", **lies.options())
            except ValueError as error:
                raised.append(str(error))
    return raised


def low_rank() -> str:
    """LowRankMuon takes no DTensors."""
    optimizer = LowRankMuon([nn.Parameter(torch.zeros(4, 4))])
    try:
        optimizer.add_param_group({"params": [nn.Parameter(LIES["FSDP"].put(torch.zeros(4, 6), LIES["FSDP"].mesh()))]})
    except TypeError as error:
        assert len(optimizer.param_groups) == 1
        return str(error)
    raise AssertionError("nothing was raised")
