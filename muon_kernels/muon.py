"""class Muon: a drop-in for torch.optim.Muon that hands whole buckets of matrices to the ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from . import auxiliary
from .buckets import Bucket, fill_bucket
from .checks import check_common, check_lr, check_muon, check_shared, frozen, with_dtypes
from .coefficients import ORIGINAL, Coefficients
from .described import Described, describe
from .distributed.dtensors import grad_like_param, is_dtensor
from .distributed.errors import DistributedError
from .distributed.runtime import Shared, Shares, StateSharding
from .exact_state import ExactStateOptimizer
from .masters import Masters
from .matrices import Layout, split
from .orthogonalize import DEFAULT_EPS, DEFAULT_STEPS, Method
from .periodic import advance, steps_shards
from .preconditioning import Preconditioning
from .refusals import backend_request, check_backend
from .report import parameter_table
from .scaling import Rule
from .schedule import Launch, Schedule, lr_scale
from .variants import Int8Momentum, Normalizer, Rounding, WeightDecayRule
from .variants.rounding import check_rounded
from .wave import matrices_of, step_waves

DEFAULT_WORKSPACE_BYTES = 512 * 2**20
DEFAULT_CPU_WORKSPACE_BYTES = 8 * 2**20
"""On a CPU few matrices run through the whole chain at a time, so that they stay in the cache. 32 MiB of L3, the 72
matrices of GPT-2 small, best of four steps with 4, 8, 12, 24 MiB: 1.74, 1.74, 1.74, 1.84 s on two threads, 3.22, 3.22,
3.22, 3.33 on one."""


class _LossScale(NamedTuple):
    """What torch.amp.GradScaler leaves on the optimizer before a step; None without a scaler."""

    grad_scale: Tensor | None
    found_inf: Tensor | None

    def on(self, device: torch.device) -> _LossScale:
        return _LossScale(*(None if value is None else value.to(device, non_blocking=True) for value in self))


class _Work(NamedTuple):
    """A group's parameters with a gradient that it steps without other ranks, and these gradients."""

    group: dict[str, Any]
    params: list[Tensor]
    grads: list[Tensor]


_Run = tuple[Bucket, list[Described], list[Launch]]
"""Of launches that differ in their matrices alone: the group's bucket, its parameters, gradients and momenta described,
and the launches."""


class Muon(ExactStateOptimizer):
    """Muon: SGD momentum whose update is replaced by the nearest orthogonal matrix.

    Arguments, defaults, state ("momentum_buffer") and update are those of `torch.optim.Muon`; state dicts load both
    ways. Groups with `use_muon=False` (or `use_fallback=True`) are stepped by torch's AdamW or NAdam instead, so that
    one optimizer serves a whole model. https://kellerjordan.github.io/posts/muon/

    Args:
        params: 2-D parameters, or groups of them, or an empty list; parameters of any shape in groups with
            `use_muon=False`. Such a group may hold `algorithm` ("adamw", the default, or "nadam"), `betas`
            ((0.9, 0.95)), `eps` (1e-8), and `lr` and `weight_decay`, which come from the arguments below if it does
            not.
        lr: learning rate; a one-element float32 or float64 tensor on the parameters' device is read by the kernels, so
            that a captured CUDA graph follows a scheduler.
        weight_decay: decoupled: p <- (1 - lr * weight_decay) p.
        momentum: decay of the gradient average, in [0, 1).
        nesterov: look ahead by one step.
        ns_coefficients: a row (a, b, c) for every step, a list of rows, or a preset of
            `muon_kernels.coefficients.PRESETS`.
        eps: lower bound of the norm that a matrix is divided by.
        ns_steps: length of the Newton-Schulz chain.
        adjust_lr_fn: how lr follows the shape: None or "original", "match_rms_adamw", "spectral_unclamped",
            "max_dim", "constant", or a function of the shape.
        method: "auto", "standard", "gram", "squaring" or "svd"; see `orthogonalize`.
        safety_factor: the norm is taken this much larger.
        preconditioning: "frobenius" or "aol"; see `orthogonalize`.
        compute_dtype: precision of the chain, like the two below a dtype or its name ("bfloat16"); default: float16 on
            CUDA, bfloat16 (or float32) on the CPU.
        momentum_dtype: dtype of the momentum buffers; default: that of the gradient (of a parameter that several ranks
            share: its own).
        master_dtype: parameters with fewer bits keep a copy in this dtype ("master" in their state), which is stepped
            and which they are rounded from, in groups without Muon too; default: they are stepped themselves. The copy
            of a DTensor lies as it does.
        momentum_store: how the momentum is kept: None, or `Int8Momentum` of `muon_kernels.variants`, in a byte an
            element, stepped in float32. Not for parameters that several ranks share.
        rounding: "nearest", or "stochastic", which rounds bfloat16 parameters up or down such that steps below their
            last bit are not lost on average; in groups without Muon too, whose averages are float32 then. Without
            `master_dtype`, not for parameters that several ranks share.
        maximize: ascend instead of descend.
        layout: how a parameter is made of matrices: None for a 2-D one as it is; "flatten" and others for convolutions,
            experts, fused projections and blocks, see `muon_kernels.matrices`. Each matrix is stepped as if it were a
            parameter of its own.
        period: None, or P for block-periodic steps: each P-th one, the first among them, takes a 2-D parameter as one
            matrix, the others the blocks of its `layout` (`muon_kernels.periodic`); with layout "shards" those send
            nothing. Not with a normaliser, a momentum store or stochastic rounding.
        block_lr_scale: what lr is multiplied by in the steps of the blocks.
        normalizer: what divides an orthogonalised update by the root of its second moment: None, or `NorMuon` or
            `AdaMuon` of `muon_kernels.variants`; AdaMuon not for parameters that several ranks share.
        weight_decay_rule: "decoupled", or "cautious", which decays only where update and parameter agree in sign; of
            groups with Muon.
        max_workspace_bytes: bound on scratch memory; a model that needs more is stepped in waves, and a single matrix
            that needs more still runs. Default: 512 MiB, on the CPU 8 MiB. A normaliser and cautious decay take
            float32 copies of a wave's matrices besides, stochastic rounding in a group without Muon copies of all its
            parameters.
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
        preconditioning: Preconditioning = "frobenius",
        compute_dtype: torch.dtype | str | None = None,
        momentum_dtype: torch.dtype | str | None = None,
        master_dtype: torch.dtype | str | None = None,
        momentum_store: Int8Momentum | None = None,
        rounding: Rounding = "nearest",
        maximize: bool = False,
        layout: Layout = None,
        period: int | None = None,
        block_lr_scale: float = 1.0,
        normalizer: Normalizer | None = None,
        weight_decay_rule: WeightDecayRule = "decoupled",
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
            "preconditioning": preconditioning,
            "compute_dtype": compute_dtype,
            "momentum_dtype": momentum_dtype,
            "master_dtype": master_dtype,
            "momentum_store": momentum_store,
            "rounding": rounding,
            "maximize": maximize,
            "layout": layout,
            "period": period,
            "block_lr_scale": block_lr_scale,
            "normalizer": normalizer,
            "weight_decay_rule": weight_decay_rule,
        }
        defaults = with_dtypes(defaults)
        check_common(defaults)
        check_muon(defaults)
        if max_workspace_bytes is not None and max_workspace_bytes <= 0:
            raise ValueError(f"max_workspace_bytes must be > 0, got {max_workspace_bytes}")
        self._max_workspace_bytes = max_workspace_bytes
        self._masters = Masters()
        self._schedule = Schedule()
        self._process_group = process_group
        self._shares = Shares(state_sharding)
        # A pipeline stage may have no matrices. A tensor is left for the base class to refuse.
        given: Any = params if isinstance(params, Tensor) else list(params) or [{"params": []}]
        super().__init__(given, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.add_param_group`; the group's options and shapes are checked first."""
        group = with_dtypes(param_group)
        group["use_muon"] = bool(group.get("use_muon", True)) and not group.pop("use_fallback", False)
        if not group["use_muon"]:
            group = auxiliary.DEFAULTS | group
        options = self.defaults | group
        check_common(options)
        if group["use_muon"]:
            check_muon(options)
            group |= frozen(options)
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
                    if options["period"]:
                        split(p.detach(), None)
            check_rounded(options["rounding"], self.param_groups[-1]["params"])
            self._add_shared(self.param_groups[-1], shared)
        except (TypeError, ValueError, DistributedError):
            del self.param_groups[before:]
            raise

    def _add_shared(self, group: dict[str, Any], shared: Shared | None) -> None:
        """Gives what other ranks hold too a state from the start, so that checkpoints have the same keys everywhere."""
        if shared is not None or any(map(is_dtensor, group["params"])):
            check_shared(group)
        if not group["use_muon"]:
            held = [p for p in group["params"] if is_dtensor(p) or shared is not None]
            for p, target in zip(held, self._masters.open(held, self.state, group["master_dtype"]), strict=True):
                self.state[p].update(auxiliary.init_state(target, group))
            return
        first = sum(len(g["params"]) for g in self.param_groups) - len(group["params"])
        names = group.get("param_names") or [str(first + i) for i in range(len(group["params"]))]
        self._shares.adopt(group, names, shared)
        for adopted in self._shares.held([group], self.state):
            self._masters.open(adopted.params, self.state, group["master_dtype"])

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Fills in what an older checkpoint, or one of torch.optim.Muon, does not know."""
        super().__setstate__(state)
        self._masters = Masters()
        self._schedule = Schedule()
        for group in self.param_groups:
            group.setdefault("use_muon", True)
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            if group["use_muon"]:
                group |= frozen(group)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_max_workspace_bytes", "_process_group", "_shares")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One optimization step; returns the closure's value. Parameters without a gradient are skipped.

        Raises:
            RuntimeError: a sparse gradient, or one that does not match its parameter; nothing has been changed.
            ValueError: a momentum that does not match its parameter, or one of the three that torch negates as it reads
                it (`x.conj().imag`); nothing has been changed.
            BackendUnavailable: a backend that was asked for by name cannot run an op of the step; nothing has been
                changed, but by a compiled step, whose ops ask as they run.
            DistributedError: see `muon_kernels.distributed.errors`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [self._work(group) for group in self.param_groups]
        opened: list[list[Tensor]] = []
        planned: list[list[_Run]] = []
        request = "auto"

        def plan() -> None:
            nonlocal request
            request = backend_request()
            described = []
            for number, (group, params, grads) in enumerate(work):
                described.append(self._schedule.check(number, group, params, grads))
                check_rounded(group["rounding"], params)
                check_lr(group["lr"])
            opened.extend([self._masters.open(params, self.state, group["master_dtype"]) for group, params, _ in work])
            for number, of_group in enumerate(zip(work, opened, described, strict=True)):
                planned.append(self._plan(number, *of_group))
            if request != "auto":
                for (group, *_), runs in zip(work, planned, strict=True):
                    for bucket, _, launches in runs:
                        check_backend(matrices_of(group, bucket, launches[0]))

        shared = self._shares.prepare(self.param_groups, self.state, self._masters, self._workspace_bytes, plan)
        amp = _LossScale(getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
        for (group, params, _), targets, runs in zip(work, opened, planned, strict=True):
            for bucket, lists, launches in runs:
                scale = amp.on(launches[0].device)
                step_waves(group, bucket, lists, launches, scale.grad_scale, scale.found_inf, request)
            if params and not group["use_muon"]:
                scale = amp.on(params[0].device)
                grads, states = [grad_like_param(p) for p in params], [self.state[p] for p in params]
                auxiliary.step(targets, grads, states, group, grad_scale=scale.grad_scale, found_inf=scale.found_inf)
            self._masters.close(params, targets)
            if group["use_muon"] and (params or self._shares.holds_any(group)):  # ranks count alike
                advance(group)
        for bucket_step in shared:
            scale = amp.on(bucket_step.device)
            bucket_step.run(scale.grad_scale, scale.found_inf)
        return loss

    def explain(self) -> str:
        """A table of the parameters: name or number, shape, algorithm, matrices, the shape's factor for lr, and the
        reason if `param_groups_for` made the groups.

        If several ranks share some of them, also where those lie, which ranks of the mesh (or process group) compute
        them and how ("local", "owner" or "redundant", see `muon_kernels.distributed.plan`), and the KiB that all ranks
        together send in a step.
        """
        shared = self._shares.explain(self.param_groups, self.state, self._workspace_bytes)
        return parameter_table(self.param_groups, lr_scale, shared)

    def _work(self, group: dict[str, Any]) -> _Work:
        params = group["params"] if steps_shards(group) else self._shares.without(group["params"])
        grads = [p.grad for p in params]
        if any(grad is None for grad in grads):
            params = [p for p, grad in zip(params, grads, strict=True) if grad is not None]
            grads = [grad for grad in grads if grad is not None]
        return _Work(group, params, grads)  # type: ignore[arg-type]

    def _plan(
        self, number: int, work: _Work, targets: list[Tensor], described: tuple[Described, Described]
    ) -> list[_Run]:
        """What of a group with Muon is launched together, one after the other; of another nothing.

        Args:
            number: of the group.
            targets: what is stepped of each of the parameters.
            described: the group's parameters and gradients.
        """
        if not work.group["use_muon"]:
            return []
        params, grads = described
        stepped = params.of(targets)
        bucket, owners = fill_bucket(*work, stepped, self.state)
        lists = [stepped.of(bucket.params), grads.of(bucket.grads), describe(bucket.momenta)]
        runs = self._schedule.launches(number, work.group, bucket, owners, lists, self._workspace_bytes)
        return [(bucket, lists, launches) for launches in runs]

    def _workspace_bytes(self, device: torch.device) -> int:
        default = DEFAULT_CPU_WORKSPACE_BYTES if device.type == "cpu" else DEFAULT_WORKSPACE_BYTES
        return self._max_workspace_bytes or default
