"""The README's table of options: all of them, by the names that the code has."""

import inspect
import re
from pathlib import Path

import torch

from muon_kernels import Muon
from muon_kernels.auxiliary import ALGORITHMS, DEFAULTS
from muon_kernels.coefficients import PRESETS
from muon_kernels.matrices import NAMES
from muon_kernels.orthogonalize import METHODS
from muon_kernels.scaling import RULES

README = (Path(__file__).parent.parent / "README.md").read_text()
TABLE = README.split("| argument beyond torch.optim.Muon |")[1].split("\n\n")[0]
ROWS = dict(re.findall(r"^\| (`.*?`) \| (.*) \|$", TABLE, re.MULTILINE))


def arguments(optimizer):
    return [name for name in inspect.signature(optimizer).parameters if name != "params"]


def quoted(text):
    return set(re.findall(r"`\"?([\w.]+)\"?`", text))


def test_arguments():
    """Those that torch.optim.Muon does not have, and two of torch's that take more here."""
    listed = [name for cell in ROWS for name in re.findall(r"`(\w+)`", cell)]
    ours = set(arguments(Muon)) - set(arguments(torch.optim.Muon))
    assert len(listed) == len(set(listed))
    assert set(listed) == ours | {"ns_coefficients", "adjust_lr_fn"}


def test_values():
    assert set(PRESETS) <= quoted(ROWS["`ns_coefficients`"])
    assert set(RULES) - {"original", "match_rms_adamw"} <= quoted(ROWS["`adjust_lr_fn`"])
    assert set(METHODS) <= quoted(ROWS["`method`"])
    assert set(NAMES) <= quoted(ROWS["`layout`"])


def test_options_of_groups():
    optimizer = Muon([])
    per_group = set(optimizer.param_groups[0]) | {"process_group"}
    (sentence,) = re.findall(r"Every argument but (.*) can be given per group", README)
    assert set(arguments(Muon)) - per_group == quoted(sentence)
    for name in (*DEFAULTS, *ALGORITHMS, "use_muon", "lr", "weight_decay"):  # of groups without Muon
        assert re.search(rf"\b{name}\b", README, re.IGNORECASE)
