"""What the bindings read, tell apart and refuse."""

import ast
import re

import pytest
import torch
from cases import assert_descriptions_differ
from optimizers import make_params, set_grads
from test_build import ROOT
from torch import nn

from muon_kernels import Muon, ops, use_backend


def test_signatures_are_written_down(host_module):
    stub = ast.parse((ROOT / "muon_kernels" / "_C.pyi").read_text())
    written = {node.name: node for node in stub.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert set(written) == {name for name in vars(host_module) if not name.startswith("__")}
    for name, node in written.items():
        functions = [node] if isinstance(node, ast.FunctionDef) else node.body
        for function in functions:
            owner = host_module if function is node else getattr(host_module, name)
            signature = getattr(owner, function.name).__doc__.splitlines()[0]
            names = [argument.arg for argument in function.args.args]
            assert names == re.findall(r"(\w+): ", signature), (name, function.name, signature)


def test_dimensions_that_do_not_merge_are_named():
    grads, momenta, outs = ([torch.zeros(2), torch.zeros(8, 8, 8)[:4, :4, :4]] for _ in range(3))
    message = r"grads, momenta and outs at index 1 must merge into at most two dimensions, got strides \(64, 8, 1\), "
    with use_backend("cuda"), pytest.raises(ValueError, match=message):
        ops.prologue(grads, momenta, outs, torch.empty(2, dtype=torch.float64), momentum=0.5)


def test_what_the_kernels_refuse_is_named():
    x = [nn.Parameter(torch.randn(4, 4, dtype=torch.float64))]
    with use_backend("cuda"), pytest.raises(RuntimeError, match="no CUDA kernel for torch.float64"):
        ops.sum_squares([p.detach()[None] for p in x], torch.empty(1, dtype=torch.float64))


def test_descriptions_tell_lists_apart():
    assert_descriptions_differ()


@pytest.mark.parametrize("value", [torch.ones(2), torch.ones(1, dtype=torch.float64)], ids=["two", "float64"])
@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
def test_scalars_that_do_not_fit_change_nothing(name, value):
    (p,) = params = make_params(torch.float32, [(8, 12)])
    optimizer = Muon(params, lr=0.1, compute_dtype=torch.float16)
    set_grads(params, 0)
    setattr(optimizer, name, value)
    before = p.detach().clone()
    with use_backend("cuda"), pytest.raises(ValueError, match=f"{name} must be one float32 on cpu"):
        optimizer.step()
    assert torch.equal(p, before) and not optimizer.state[p]["momentum_buffer"].any()
