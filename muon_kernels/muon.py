"""class Muon: a drop-in for torch.optim.Muon that hands whole buckets of matrices to the ops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from . import auxiliary
from .coefficients import ORIGINAL, Coefficients, freeze_coefficients, resolve_coefficients
from .distributed.binding import is_dtensor
from .distributed.errors import DistributedError
from .distributed.runtime import Shared, Shares, StateSharding
from .matrices import Layout, freeze_layout, split, step_factor
from .ops import apply, prologue
from .orthogonalize import (
    DEFAULT_EPS,
    DEFAULT_STEPS,
    Method,
    check_options,
    default_compute_dtype,
    newton_schulz,
    polar_factor,
)
from .scaling import Rule, resolve_rule
from .workspace import Wave, empty_batch, plan_waves

DEFAULT_WORKSPACE_BYTES = 512 * 2**20
DEFAULT_CPU_WORKSPACE_BYTES = 24 * 2**20
"""On a CPU few matrices run through the whole chain at a time, so that they stay in the cache. Two threads, 32 MiB of
L3, 16 matrices of 768 x 768 and 8 of 768 x 3072 in bfloat16: 696, 683, 701, 704 ms with 4, 24, 48, 96 MiB."""


class _LossScale(NamedTuple):
    """What torch.amp.GradScaler leaves on the optimizer before a step; None without a scaler."""

    grad_scale: Tensor | None
    found_inf: Tensor | None

    def on(self, device: torch.device) -> _LossScale:
        return _LossScale(*(None if value is None else value.to(device, non_blocking=True) for value in self))


class _Matrix(NamedTuple):
    """One problem of a step: views of a parameter, its gradient and its momentum, and the rule's factor for lr."""

    param: Tensor
    grad: Tensor
    momentum: Tensor
    scale: float


class Muon(Optimizer):
    """Muon: SGD momentum whose update is replaced by the nearest orthogonal matrix.

    Arguments, defaults, state ("momentum_buffer") and update are those of `torch.optim.Muon`; state dicts load both
    ways. Groups with `use_muon=False` (or `use_fallback=True`) are stepped by torch's AdamW or NAdam instead, so that
    one optimizer serves a whole model. https://kellerjordan.github.io/posts/muon/

    Args:
        params: 2-D parameters, or groups of them, or an empty list; parameters of any shape in groups with
            `use_muon=False`. Such a group may hold `algorithm` ("adamw", the default, or "nadam"), `betas`
            ((0.9, 0.95)), `eps` (1e-8), and `lr` and `weight_decay`, which come from the arguments below if it does
            not.
        lr: learning rate; a one-element tensor on the parameters' device is read by the kernels, so that a captured
            CUDA graph follows a scheduler.
        weight_decay: decoupled: p <- (1 - lr * weight_decay) p.
        momentum: decay of the gradient average, in [0, 1).
        nesterov: look ahead by one step.
        ns_coefficients: a row (a, b, c) for every step, a list of rows, or a preset of
            `muon_kernels.coefficients.PRESETS`.
        eps: lower bound of the norm that a matrix is divided by.
        ns_steps: length of the Newton-Schulz chain.
        adjust_lr_fn: how lr follows the shape: None or "original", "match_rms_adamw", "spectral_unclamped",
            "max_dim", or a function of the shape.
        method: "auto", "standard", "gram" or "svd"; see `orthogonalize`.
        safety_factor: the norm is taken this much larger.
        compute_dtype: precision of the chain; default: float16 on CUDA, bfloat16 (or float32) on the CPU.
        momentum_dtype: dtype of the momentum buffers; default: that of the gradient (of a parameter that several ranks
            share: its own).
        maximize: ascend instead of descend.
        layout: how a parameter is made of matrices: None for a 2-D one as it is; "flatten" and others for convolutions,
            experts, fused projections and blocks, see `muon_kernels.matrices`. Each matrix is stepped as if it were a
            parameter of its own.
        max_workspace_bytes: bound on scratch memory; a model that needs more is stepped in waves, and a single matrix
            that needs more still runs. Default: 512 MiB, on the CPU 24 MiB.
        process_group: ranks (a ProcessGroup or a 1-D DeviceMesh) that hold the plain tensors among the parameters, and
            their gradients, alike (DDP), so that they share the work; also per group. Without it they do not
            communicate. DTensors (FSDP2, HSDP, tensor parallel) always share it over their own meshes.
        state_sharding: where the momentum of such plain tensors lies: "match", whole on every rank, or "rows", a
            DTensor sharded along dimension 0.

    Raises:
        TypeError, ValueError: an argument or a group option that is out of its range, by name and value.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: Coefficients = ORIGINAL,
        eps: float = DEFAULT_EPS,
        ns_steps: int = DEFAULT_STEPS,
        adjust_lr_fn: str | Rule | None = None,
        *,
        method: Method = "auto",
        safety_factor: float = 1.0,
        compute_dtype: torch.dtype | None = None,
        momentum_dtype: torch.dtype | None = None,
        maximize: bool = False,
        layout: Layout = None,
        max_workspace_bytes: int | None = None,
        process_group: Shared | None = None,
        state_sharding: StateSharding = "match",
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "method": method,
            "safety_factor": safety_factor,
            "compute_dtype": compute_dtype,
            "momentum_dtype": momentum_dtype,
            "maximize": maximize,
            "layout": layout,
        }
        _check_common(defaults)
        _check_muon(defaults)
        if max_workspace_bytes is not None and max_workspace_bytes <= 0:
            raise ValueError(f"max_workspace_bytes must be > 0, got {max_workspace_bytes}")
        self._max_workspace_bytes = max_workspace_bytes
        self._process_group = process_group
        self._shares = Shares(state_sharding)
        # A pipeline stage may have no matrices. A tensor is left for the base class to refuse.
        given: Any = params if isinstance(params, Tensor) else list(params) or [{"params": []}]
        super().__init__(given, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.add_param_group`; the group's options and shapes are checked first."""
        group = dict(param_group)
        group["use_muon"] = bool(group.get("use_muon", True)) and not group.pop("use_fallback", False)
        if not group["use_muon"]:
            group = auxiliary.DEFAULTS | group
        options = self.defaults | group
        _check_common(options)
        if group["use_muon"]:
            _check_muon(options)
            group["ns_coefficients"] = freeze_coefficients(options["ns_coefficients"])
            group["layout"] = freeze_layout(options["layout"])
        else:
            auxiliary.check_group(options)
        shared = group.pop("process_group", self._process_group)
        before = len(self.param_groups)
        super().add_param_group(group)
        try:
            for p in self.param_groups[-1]["params"]:
                if not p.is_floating_point():
                    raise TypeError(f"parameters must be real floating point, got {p.dtype} for {list(p.shape)}")
                if group["use_muon"] and not is_dtensor(p):
                    split(p.detach(), group["layout"])
            self._add_shared(self.param_groups[-1], shared)
        except (TypeError, ValueError, DistributedError):
            del self.param_groups[before:]
            raise

    def _add_shared(self, group: dict[str, Any], shared: Shared | None) -> None:
        """Gives what other ranks hold too a state from the start, so that checkpoints have the same keys everywhere."""
        if not group["use_muon"]:
            for p in group["params"]:
                if is_dtensor(p) or shared is not None:
                    self.state[p].update(auxiliary.init_state(p, group))
            return
        first = sum(len(g["params"]) for g in self.param_groups) - len(group["params"])
        names = group.get("param_names") or [str(first + i) for i in range(len(group["params"]))]
        self._shares.adopt(group, names, shared)
        self._shares.momenta([group], self.state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Fills in what an older checkpoint, or one of torch.optim.Muon, does not know."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("use_muon", True)
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            if group["use_muon"]:
                group["ns_coefficients"] = freeze_coefficients(group["ns_coefficients"])
                group["layout"] = freeze_layout(group["layout"])

    def __getstate__(self) -> dict[str, Any]:
        own = ("_max_workspace_bytes", "_process_group", "_shares")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.load_state_dict`, but every tensor is a copy in the dtype it was saved in."""
        loaded: dict[str, Any] = {}  # what the registered pre-hooks made of state_dict
        handle = self.register_load_state_dict_pre_hook(lambda _, state: loaded.update(state))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        saved = loaded["state"]
        ids = (i for group in loaded["param_groups"] for i in group["params"])
        params = (p for group in self.param_groups for p in group["params"])
        for i, p in zip(ids, params, strict=True):
            for key, value in saved.get(i, {}).items():
                if isinstance(value, Tensor):
                    self.state[p][key] = value.detach().to(p.device, copy=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One optimization step; returns the closure's value. Parameters without a gradient are skipped.

        Raises:
            RuntimeError: a sparse gradient, or one that does not match its parameter; nothing has been changed.
            DistributedError: see `muon_kernels.distributed.errors`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [
            (group, [p for p in group["params"] if p.grad is not None and p not in self._shares])
            for group in self.param_groups
        ]

        def check() -> None:
            for group, params in work:
                _check_grads(params)
                if group["use_muon"]:
                    _check_muon(group)

        shared = self._shares.prepare(self.param_groups, self.state, self._workspace_bytes, check)
        amp = _LossScale(getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
        buckets = [self._buckets(group, params) if group["use_muon"] else [] for group, params in work]
        for (group, params), group_buckets in zip(work, buckets, strict=True):
            for bucket in group_buckets:
                self._step_bucket(group, bucket, amp)
            if params and not group["use_muon"]:
                for p in params:
                    if not self.state[p]:
                        self.state[p].update(auxiliary.init_state(p, group))
                scale = amp.on(params[0].device)
                auxiliary.step(
                    params,
                    [self.state[p] for p in params],
                    group,
                    grad_scale=scale.grad_scale,
                    found_inf=scale.found_inf,
                )
        for bucket_step in shared:
            scale = amp.on(bucket_step.device)
            bucket_step.run(scale.grad_scale, scale.found_inf)
        return loss

    def explain(self) -> str:
        """A table of the parameters: name or number, shape, algorithm, matrices, and the shape's factor for lr.

        If several ranks share some of them, also where those lie, which ranks of the mesh (or process group) compute
        them and how ("local", "owner" or "redundant", see `muon_kernels.distributed.plan`), and the KiB that all ranks
        together send in a step.
        """
        shared = self._shares.explain(self.param_groups, self.state, self._workspace_bytes)
        titles = ("lies", "computed by", "KiB sent") if shared else ()
        rows = [("parameter", "shape", "algorithm", "matrices", "lr scale", *titles)]
        number = 0
        for group in self.param_groups:
            names = group.get("param_names") or [None] * len(group["params"])
            for name, p in zip(names, group["params"], strict=True):
                algorithm, matrices, scale = group.get("algorithm", "adamw"), "", "1"
                if group["use_muon"]:
                    like = torch.empty(p.shape, device="meta") if p in shared else p.detach()
                    shapes = [tuple(m.shape) for m in split(like, group["layout"])]
                    scales = sorted({_scale(group, p, shape) for shape in shapes})
                    algorithm = "muon"
                    matrices = ", ".join(f"{shapes.count(s)} x {s[0]}x{s[1]}" for s in dict.fromkeys(shapes))
                    scale = ", ".join(f"{s:.4g}" for s in scales)
                rows.append(
                    (
                        str(name or number),
                        "x".join(map(str, p.shape)),
                        algorithm,
                        matrices,
                        scale,
                        *shared.get(p, [""] * len(titles)),
                    )
                )
                number += 1
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)

    def _buckets(self, group: dict[str, Any], params: list[Tensor]) -> list[list[_Matrix]]:
        """Matrices that run together: equal device and equal dtypes of parameter, gradient and momentum."""
        buckets: dict[tuple[Any, ...], list[_Matrix]] = {}
        layout = group["layout"]
        for p in params:
            grad = p.grad
            assert grad is not None
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(
                    grad, dtype=group["momentum_dtype"], memory_format=torch.preserve_format
                )
            if layout is not None:
                grad = _ordered_like(p, grad)
                state["momentum_buffer"] = _ordered_like(p, state["momentum_buffer"])
            momentum = state["momentum_buffer"]
            if p.numel():
                views = (split(t, layout) for t in (p, grad, momentum))
                key = (p.device, p.dtype, grad.dtype, momentum.dtype)
                buckets.setdefault(key, []).extend(
                    _Matrix(a, b, c, _scale(group, p, a.shape)) for a, b, c in zip(*views, strict=True)
                )
        return list(buckets.values())

    def _step_bucket(self, group: dict[str, Any], bucket: list[_Matrix], amp: _LossScale) -> None:
        device = bucket[0].param.device
        compute = group["compute_dtype"] or default_compute_dtype(device)
        shapes = tuple((m.param.shape[0], m.param.shape[1]) for m in bucket)
        for wave in plan_waves(shapes, compute.itemsize, self._workspace_bytes(device)):
            self._step_wave(group, [bucket[i] for i in wave.order], wave, compute, amp.on(device))

    def _workspace_bytes(self, device: torch.device) -> int:
        default = DEFAULT_CPU_WORKSPACE_BYTES if device.type == "cpu" else DEFAULT_WORKSPACE_BYTES
        return self._max_workspace_bytes or default

    def _step_wave(
        self, group: dict[str, Any], matrices: list[_Matrix], wave: Wave, compute: torch.dtype, amp: _LossScale
    ) -> None:
        device = matrices[0].param.device
        # float16 has too little range for what is not normalised yet.
        dtype = torch.bfloat16 if compute == torch.float16 else compute
        problems = [empty_batch(*extents, dtype, device) for extents in wave.groups]
        sumsq = torch.empty(len(matrices), dtype=torch.float64, device=device)
        prologue(
            [m.grad for m in matrices],
            [m.momentum for m in matrices],
            _unbind(problems),
            sumsq,
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            grad_scale=amp.grad_scale,
            found_inf=amp.found_inf,
        )
        if group["method"] == "svd":
            orthogonal = [polar_factor(x) for x in problems]
        else:
            orthogonal = newton_schulz(
                problems,
                sumsq,
                resolve_coefficients(group["ns_coefficients"], group["ns_steps"]),
                method=group["method"],
                eps=group["eps"],
                safety_factor=group["safety_factor"],
                compute_dtype=compute,
                overwrite=True,
            )
        lr = group["lr"]
        apply(
            [m.param for m in matrices],
            _unbind(orthogonal),
            lr=lr.to(device) if isinstance(lr, Tensor) and lr.device.type != "cpu" else lr,
            weight_decay=group["weight_decay"],
            scales=[m.scale for m in matrices],
            found_inf=amp.found_inf,
        )


def _unbind(batches: Sequence[Tensor]) -> list[Tensor]:
    return [matrix for batch in batches for matrix in batch.unbind(0)]


def _scale(group: dict[str, Any], p: Tensor, shape: Sequence[int]) -> float:
    return resolve_rule(group["adjust_lr_fn"])(shape) * step_factor(p.shape, group["layout"])


def _ordered_like(p: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` itself, or a copy with its dimensions in the order in which the parameter's lie in memory."""
    if tensor.stride() == p.stride():
        return tensor
    ordered = torch.empty_like(p, dtype=tensor.dtype, memory_format=torch.preserve_format)
    return tensor if ordered.stride() == tensor.stride() else ordered.copy_(tensor)


def _check_common(options: dict[str, Any]) -> None:
    lr = options["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr must be a float or a one-element tensor, got shape {list(lr.shape)}")
    for name in ("lr", "weight_decay"):
        # A tensor on a device is not read here: that would wait for the device.
        value = options[name]
        if not (isinstance(value, Tensor) and value.device.type != "cpu") and not 0.0 <= float(value) < math.inf:
            raise ValueError(f"{name} must be >= 0 and finite, got {value}")


def _check_muon(options: dict[str, Any]) -> None:
    if not 0.0 <= options["momentum"] < 1.0:
        raise ValueError(f"momentum must be in [0, 1), got {options['momentum']}")
    resolve_coefficients(options["ns_coefficients"], options["ns_steps"])
    resolve_rule(options["adjust_lr_fn"])
    freeze_layout(options["layout"])
    check_options(
        options["method"],
        options["eps"],
        options["safety_factor"],
        options["compute_dtype"] or torch.float32,
    )
    dtype = options["momentum_dtype"]
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"momentum_dtype must be None or a floating dtype, got {dtype}")


def _check_grads(params: list[Tensor]) -> None:
    for p in params:
        grad = p.grad
        assert grad is not None
        if grad.layout != torch.strided:
            raise RuntimeError(f"Muon does not support sparse gradients, got {grad.layout} for shape {list(p.shape)}")
        if not grad.is_floating_point():
            raise RuntimeError(f"gradients must be real floating point, got {grad.dtype} for shape {list(p.shape)}")
        if grad.shape != p.shape or grad.device != p.device:
            raise RuntimeError(
                f"a gradient must match its parameter ({list(p.shape)} on {p.device}), "
                f"got {list(grad.shape)} on {grad.device}"
            )
