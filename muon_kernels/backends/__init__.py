"""Who runs an op: the registry of backends, the selection rule, and its explanation.

A backend is a module with `NAME`, `OPS` (op name -> implementation) and
`unavailable_reason(op, device, lists)`, which returns None when it can run the op on these tensors and otherwise one
sentence that says why not. It may have `WHOLES`: what does the work of several ops in one call (see `whole`).
"""

from __future__ import annotations

import contextvars
import importlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

logger = logging.getLogger("muon_kernels")

ENVIRONMENT_VARIABLE = "MUON_KERNELS_BACKEND"
NAMES = ("cuda", "triton", "reference")
"""Every backend, in the order in which "auto" asks them."""

OP_NAMES = ("prologue", "sum_squares", "normalize", "symm_gemm", "gemm_add", "chains", "gemm_apply", "apply")

WHOLE_OPS = {
    "waves": ("prologue", "normalize", "chains", "gemm_apply"),
    "orthogonalize": ("normalize", "chains", "gemm_add"),
}
"""What a backend may do in one call, and the ops that do the same."""

_override: contextvars.ContextVar[str | None] = contextvars.ContextVar("muon_kernels_backend", default=None)
_logged: set[tuple[str, str, str]] = set()

TensorLists = Sequence[Sequence[Tensor]]


class BackendUnavailable(RuntimeError):
    """The backend that was asked for by name cannot run this op on these tensors."""


def requested() -> str:
    """The request in force: `use_backend`, else the environment variable, else "auto"."""
    return _validate(_override.get() or os.environ.get(ENVIRONMENT_VARIABLE) or "auto")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block every op runs on the backend `name`, or raises BackendUnavailable.

    Args:
        name: "auto", "reference", "cuda", "triton", or several with commas between them ("cuda,reference"): every op
            then runs on the first of them that can.

    Holds for the current thread or asyncio task. Raises ValueError for an unknown name.
    """
    token = _override.set(_validate(name))
    try:
        yield
    finally:
        _override.reset(token)


def select(op: str, device: torch.device, lists: TensorLists) -> Callable[..., None]:
    """The implementation of `op` for tensors on `device`.

    Args:
        op: one of OP_NAMES.
        device: where the tensors live.
        lists: the op's tensor lists; each list has one dtype (the ops check that).

    Raises:
        BackendUnavailable: no backend that was asked for by name can run it; the message holds the reasons.
    """
    request = requested()
    refusals = []
    for name in NAMES if request == "auto" else request.split(","):
        reason = _refusal(name, op, device, lists)
        if reason is None:
            return _backend(name).OPS[op]
        refusals.append(f"{name}: {reason}")
        if request == "auto" and device.type == "cuda":
            _log_once(name, op, reason)
    raise BackendUnavailable(f"no backend of '{request}' can run {op}: {'; '.join(refusals)}")


def whole(name: str, device: torch.device, lists: TensorLists, request: str) -> Callable[..., list[bool]] | None:
    """What does the work of several ops in one call, of the backend that the ops would run on: None if that one has no
    such thing or cannot run it on these tensors. The ops do the same then, one by one.

    That backend is the first asked that can run any of these ops on the device.

    Args:
        name: one of WHOLE_OPS; see `muon_kernels.backends.cuda_wave` and `.triton.whole`.
        request: what `requested` says.
    """
    for backend in NAMES if request == "auto" else request.split(","):
        wholes = getattr(_backend(backend), "WHOLES", {})
        if name in wholes and _refusal(backend, name, device, lists) is None:
            return wholes[name]
        for op in WHOLE_OPS[name]:
            reason = _refusal(backend, op, device, ())
            if reason is None:
                return None
            if request == "auto" and device.type == "cuda":
                _log_once(backend, op, reason)
    return None


def explain(device: torch.device | str | None = None) -> str:
    """A table of the ops: which backend would run each on `device`, and why the others would not.

    `device` defaults to the current CUDA device if there is one, else the CPU.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    label = str(where)
    if where.type == "cuda" and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability(where)
        label += f" ({torch.cuda.get_device_name(where)}, sm_{major}{minor})"
    request = requested()
    lines = [f"device {label}, backend requested: {request}", f"{'op':<11} {'runs on':<11} refused by"]
    for op in OP_NAMES:
        refusals = {n: r for n in NAMES if (r := _refusal(n, op, where, ()))}
        try:
            chosen = select(op, where, ())
            runner = next(n for n in NAMES if _backend(n).OPS.get(op) is chosen)
        except BackendUnavailable:
            runner = "nobody"
        lines.append(f"{op:<11} {runner:<11} " + "; ".join(f"{n}: {r}" for n, r in refusals.items()))
    return "\n".join(line.rstrip() for line in lines)


def _refusal(name: str, op: str, device: torch.device, lists: TensorLists) -> str | None:
    reason: str | None = _backend(name).unavailable_reason(op, device, lists)
    return reason


@cache
def _backend(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def _validate(request: str) -> str:
    if request != "auto" and not set(request.split(",")) <= set(NAMES):
        raise ValueError(f"backend must be 'auto' or some of {', '.join(NAMES)}, got {request!r}")
    return request


def _log_once(name: str, op: str, reason: str) -> None:
    if (name, op, reason) not in _logged:
        _logged.add((name, op, reason))
        logger.info("%s does not run on %s: %s", op, name, reason)
