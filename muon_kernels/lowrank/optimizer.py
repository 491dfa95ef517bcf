"""class LowRankMuon (experimental)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..checks import check_grads, check_momentum, check_rates
from ..coefficients import ORIGINAL, Coefficients, freeze_coefficients, resolve_coefficients
from ..distributed.dtensors import is_dtensor
from ..exact_state import ExactStateOptimizer
from ..ops import apply
from ..orthogonalize import (
    DEFAULT_STEPS,
    Method,
    check_coefficients,
    check_options,
    default_compute_dtype,
    orthogonalize,
)
from ..refusals import backend_request, check_ops, ops_of_chain
from ..scaling import Rule, resolve_rule
from .moments import KEYS, adam_ratio, check_state, moved_moments, new_state
from .rank import check_max_loss, check_ranks, decide_rank, read_loss


class _Batch(NamedTuple):
    """Parameters of one group, device, dtype and shape whose states are of one rank, the rank of this step, and the
    shape's factor for lr."""

    group: dict[str, Any]
    params: list[Tensor]
    rank: int
    scale: float


class LowRankMuon(ExactStateOptimizer):
    """Experimental. Muon whose momentum is kept as singular vectors and values, of a rank that follows the loss.

    Every gradient [rows, cols] is cut to its r leading singular directions U S V^T. The vectors are averaged, aligned
    with those of the steps before, and orthogonalised, each side by itself; the singular values get Adam's two moments:

        p <- (1 - lr weight_decay) p - lr scale orthogonalize(avg U) diag(m / (sqrt(v) + eps)) orthogonalize(avg V)^T

    At full rank this is Muon's step U V^T (its nesterov aside) as long as the gradient stays the same, and always with
    momentum 0 and beta2 0. The rule completes a sketch that was never published (the loss decides the rank, Adam on S,
    Newton-Schulz on U and V); the alignment is ours. The exact decomposition of every gradient costs far more than
    Muon's chain: an object of study, not a faster Muon. docs/low_rank.md

    State of a parameter: `muon_kernels.lowrank.moments.KEYS`, (rows + cols) r numbers and 4 r in float64.

    Args:
        params: 2-D parameters, or groups of them; no DTensors. Every argument below can be given per group.
        lr, weight_decay, ns_coefficients, ns_steps, adjust_lr_fn, method, compute_dtype: as of `muon_kernels.Muon`.
        momentum: decay of the averages of U, V and S, in [0, 1).
        beta2: decay of the average of S^2, in [0, 1).
        eps: added to the root of the second moment, > 0.
        max_rank: bound on the rank besides min(rows, cols); None for that alone.
        min_rank: the least rank, as far as the shape and max_rank allow.
        max_loss: loss at which the rank is highest; a larger finite loss takes its place, and None starts with the
            first. Saved with the group.

    Raises:
        TypeError, ValueError: an argument, a group option or a parameter that is out of its range, by name and value.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        ns_coefficients: Coefficients = ORIGINAL,
        eps: float = 1e-8,
        ns_steps: int = DEFAULT_STEPS,
        adjust_lr_fn: str | Rule | None = None,
        *,
        beta2: float = 0.95,
        max_rank: int | None = None,
        min_rank: int = 1,
        max_loss: float | None = None,
        method: Method = "auto",
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "beta2": beta2,
            "max_rank": max_rank,
            "min_rank": min_rank,
            "max_loss": max_loss,
            "method": method,
            "compute_dtype": compute_dtype,
        }
        _check_options(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.add_param_group`; the group's options and shapes are checked first."""
        options = self.defaults | param_group
        _check_options(options)
        super().add_param_group(
            dict(param_group) | {"ns_coefficients": freeze_coefficients(options["ns_coefficients"])}
        )
        try:
            for i, p in enumerate(self.param_groups[-1]["params"]):
                _check_param(i, p)
        except (TypeError, ValueError):
            del self.param_groups[-1]
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: float | Tensor | None = None) -> Any:
        """One optimization step; returns the loss. Parameters without a gradient are skipped.

        Args:
            closure: recomputes the loss and the gradients.
            loss: of this step, instead of a closure. It is read on the host, as the closure's is. Without either, or
                with a loss that is not finite, the rank is the highest that max_rank and the shape allow.

        Raises:
            ValueError: both arguments, a loss of several elements, an option out of its range, a state of another
                optimizer, or a parameter or gradient that torch negates as it reads it (`x.conj().imag`).
            RuntimeError: a sparse gradient, or one that does not match its parameter, or a backend that was asked for
                by name and refuses (`BackendUnavailable`). Nothing has been changed.
        """
        if closure is not None:
            if loss is not None:
                raise ValueError(f"step takes a closure or a loss, got both (loss {loss})")
            with torch.enable_grad():
                loss = closure()
        value = math.nan if loss is None else read_loss("loss", loss)
        work = [batch for group in self.param_groups for batch in self._batches(group, value)]
        for group in self.param_groups:
            group["max_loss"] = _max_loss(group, value)
        for batch in work:
            self._step_batch(batch)
        return loss

    def _batches(self, group: dict[str, Any], loss: float) -> list[_Batch]:
        """What of a group runs together, checked, but not changed."""
        _check_options(group)
        params = [p for p in group["params"] if p.grad is not None]
        check_grads(params)
        alike: dict[Any, list[Tensor]] = {}
        for p in params:
            state = self.state.get(p, {})
            check_state(p, state)
            if p.numel():
                old_rank = len(state["exp_avg"]) if state else 0
                alike.setdefault((p.device, p.dtype, p.shape, old_rank), []).append(p)
        batches = []
        for (device, dtype, shape, _), matrices in alike.items():
            if backend_request() != "auto":
                check_ops(device, _ops(group, device, dtype))
            most = min(shape) if group["max_rank"] is None else min(group["max_rank"], *shape)
            rank = decide_rank(loss, _max_loss(group, loss), most, min(group["min_rank"], most))
            batches.append(_Batch(group, matrices, rank, resolve_rule(group["adjust_lr_fn"])(shape)))
        return batches

    def _step_batch(self, batch: _Batch) -> None:
        group, params, rank, scale = batch
        states = [self.state[p] or new_state(p) for p in params]
        grads = [p.grad for p in params if p.grad is not None]
        moments = moved_moments(states, grads, rank, group["momentum"], group["beta2"])
        for i, p in enumerate(params):
            # A view would keep the others' memory alive, and in every checkpoint.
            self.state[p].update({key: moments[key][i].clone() for key in KEYS})
        left, right = (
            orthogonalize(
                moments[key],
                method=group["method"],
                ns_coefficients=group["ns_coefficients"],
                ns_steps=group["ns_steps"],
                compute_dtype=group["compute_dtype"],
            )
            for key in ("left_avg", "right_avg")
        )
        ratio = adam_ratio(moments, group["eps"]).to(left.dtype)
        apply(
            params,
            list(((left * ratio[:, None, :]) @ right.mT).unbind(0)),
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            scales=[scale] * len(params),
        )


def _ops(group: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The ops of `_step_batch` for parameters of this dtype, as `muon_kernels.refusals.ops_of_step` has them."""
    vectors = torch.promote_types(dtype, torch.float32)
    yield from ops_of_chain(group, vectors, group["compute_dtype"] or default_compute_dtype(device))
    yield "apply", (dtype, vectors)


def _max_loss(group: dict[str, Any], loss: float) -> float | None:
    """The largest finite loss so far, `loss` included."""
    return max(group["max_loss"] or 0.0, loss) if math.isfinite(loss) else group["max_loss"]


def _check_options(options: dict[str, Any]) -> None:
    check_rates(options)
    check_momentum(options["momentum"])
    if not 0.0 <= options["beta2"] < 1.0:
        raise ValueError(f"beta2 must be in [0, 1), got {options['beta2']}")
    if not 0.0 < options["eps"] < math.inf:
        raise ValueError(f"eps must be > 0 and finite, got {options['eps']}")
    check_ranks(options["min_rank"] if options["max_rank"] is None else options["max_rank"], options["min_rank"])
    check_max_loss(options["max_loss"])
    resolve_coefficients(options["ns_coefficients"], options["ns_steps"])
    check_coefficients(options["method"], options["ns_coefficients"], options["ns_steps"])
    check_options(options["method"], 0.0, 1.0, options["compute_dtype"] or torch.float32)
    resolve_rule(options["adjust_lr_fn"])


def _check_param(index: int, p: Tensor) -> None:
    if is_dtensor(p):
        raise TypeError(f"LowRankMuon does not support DTensors, got one as parameter {index}, {list(p.shape)}")
    if not p.is_floating_point():
        raise TypeError(f"parameters must be real floating point, got {p.dtype} for {list(p.shape)}")
    if p.ndim != 2:
        raise ValueError(f"LowRankMuon only supports 2-D parameters, got shape {list(p.shape)} as parameter {index}")
