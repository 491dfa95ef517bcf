"""docs/migrating.md: every line that it says to write runs."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import muon_kernels

TEXT = (Path(__file__).parent.parent / "docs" / "migrating.md").read_text()
BLOCKS = re.findall(r"^```(diff|python)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
DIFFS = [block for kind, block in BLOCKS if kind == "diff"]


def names():
    """What the page takes as given."""
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    return {
        "torch": torch,
        "model": model,
        "matrices": matrices,
        "others": others,
        "muon_state": torch.optim.Muon(matrices).state_dict(),
        "adamw_state": torch.optim.AdamW(others).state_dict(),
    }


@pytest.mark.parametrize("block", DIFFS, ids=[block.splitlines()[0] for block in DIFFS])
def test_added_lines(block):
    given = names()
    before = [p.detach().clone() for p in given["model"].parameters()]
    exec("\n".join(line[1:] for line in block.splitlines() if line.startswith("+")), given)
    if "optimizer" in given:
        assert isinstance(given["optimizer"], muon_kernels.Muon)
        given["model"](torch.randn(3, 8)).square().sum().backward()
        given["optimizer"].step()
        stepped = {p for group in given["optimizer"].param_groups for p in group["params"]}
        for p, old in zip(given["model"].parameters(), before, strict=True):
            assert (p in stepped) != torch.equal(p, old)


def test_other_code_is_python():
    assert len(DIFFS) >= 9
    for kind, block in BLOCKS:
        if kind == "python":
            compile(block, "docs/migrating.md", "exec")
