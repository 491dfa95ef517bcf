"""How an op is run: its schema, its registration with torch.library, and the short way past the dispatcher.

The schemas are the registered ops' (`torch.ops.muon_kernels.*`); what they mean stands at the functions of
`muon_kernels.ops`, and `backends.select` decides who runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import backends

PLAIN = {Tensor, torch.nn.Parameter}
"""Types of tensors that no one else listens to."""

_LIBRARY = torch.library.Library("muon_kernels", "DEF")

_SCHEMAS = {
    "prologue": (
        "(Tensor[] grads, Tensor(a!)[] momenta, Tensor(b!)[] outs, Tensor(c!) sumsq, *, float momentum, bool nesterov,"
        " bool ema, bool maximize, Tensor? grad_scale, Tensor? found_inf) -> ()"
    ),
    "sum_squares": "(Tensor[] xs, Tensor(a!) sumsq) -> ()",
    "normalize": "(Tensor[] xs, Tensor? sumsq, Tensor(a!)[] outs, *, float eps, float safety_factor) -> ()",
    "symm_gemm": (
        "(Tensor[] a, Tensor[] b, Tensor[] c, Tensor(d!)[] outs, *, float alpha, float beta, float delta) -> ()"
    ),
    "gemm_add": "(Tensor[] a, Tensor[] b, Tensor[] c, Tensor(d!)[] outs, *, float alpha, float beta) -> ()",
    "gemm_apply": (
        "(Tensor[] a, Tensor[] b, Tensor(c!)[] params, *, Tensor lr, float weight_decay, float[] scales,"
        " Tensor? found_inf) -> ()"
    ),
    "chains": ("(Tensor(a!)[] workspace, *, int[] buffers, int[] products, float[] scalars, int[] chains) -> ()"),
    "apply": (
        "(Tensor(a!)[] params, Tensor[] updates, *, Tensor lr, float weight_decay, float[] scales,"
        " Tensor? found_inf) -> ()"
    ),
}


def run(name: str, *args: Any, **kwargs: Any) -> None:
    """Runs a registered op with all arguments of its schema, unchecked: for lists that are known to fit.

    The dispatcher copies every list of tensors twice (0.2 ms of a step of 72 matrices); where nobody listens, neither a
    compiler nor a dispatch mode nor a tensor subclass, the backend is called at once.
    """
    lists = [list(arg) if type(arg) is not list else arg for arg in args if isinstance(arg, (list, tuple))]
    if _unheard(lists):
        _select_and_run(name, *(lists.pop(0) if isinstance(arg, (list, tuple)) else arg for arg in args), **kwargs)
    else:
        getattr(torch.ops.muon_kernels, name)(*args, **kwargs)


def rate_tensor(lr: float | Tensor) -> Tensor:
    """A learning rate as the schemas want it: float64 on the host, or the tensor that it is."""
    return lr if isinstance(lr, Tensor) else torch.tensor(lr, dtype=torch.float64)


def whole(name: str, lists: list[list[Tensor]], request: str | None = None) -> Callable[..., list[bool]] | None:
    """What does the work of several ops in one call, or None; see `backends.whole`.

    `request` defaults to what `backends.requested` says.
    """
    if not _unheard(lists):
        return None
    return backends.whole(name, lists[0][0].device, lists, request or backends.requested())


def _unheard(lists: list[list[Tensor]]) -> bool:
    """Whether neither a compiler nor a dispatch mode nor a tensor subclass listens."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and all(PLAIN.issuperset(map(type, tensors)) for tensors in lists)
    )


def _select_and_run(name: str, *args: Any, **kwargs: Any) -> None:
    lists = [arg for arg in args if isinstance(arg, list)]
    backends.select(name, lists[-1][0].device, lists)(*args, **kwargs)


def _register(name: str, schema: str) -> None:
    _LIBRARY.define(name + schema)
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, partial(_select_and_run, name), key)
    torch.library.register_fake(f"muon_kernels::{name}", lambda *args, **kwargs: None, lib=_LIBRARY)


for _name, _schema in _SCHEMAS.items():
    _register(_name, _schema)
