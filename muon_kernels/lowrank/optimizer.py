"""class LowRankMuon (experimental)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..checks import check_grads, check_momentum, check_rates
from ..coefficients import ORIGINAL, Coefficients, freeze_coefficients, resolve_coefficients
from ..distributed.binding import is_dtensor
from ..exact_state import ExactStateOptimizer
from ..ops import apply
from ..orthogonalize import DEFAULT_STEPS, Method, check_coefficients, check_options, orthogonalize
from ..scaling import Rule, resolve_rule
from .moments import KEYS, adam_ratio, moved_moments, new_state
from .rank import check_max_loss, check_ranks, decide_rank, read_loss


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
        """One optimization step; returns the closure's value. Parameters without a gradient are skipped.

        Args:
            closure: recomputes the loss and the gradients.
            loss: of this step, instead of a closure. It is read on the host, as the closure's is. Without either, or
                with a loss that is not finite, the rank is the highest that max_rank and the shape allow.

        Raises:
            ValueError: both arguments, a loss of several elements, or an option out of its range.
            RuntimeError: a sparse gradient, or one that does not match its parameter. Nothing has been changed.
        """
        if closure is not None:
            if loss is not None:
                raise ValueError(f"step takes a closure or a loss, got both (loss {loss})")
            with torch.enable_grad():
                loss = closure()
        value = math.nan if loss is None else read_loss("loss", loss)
        work = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        for group, params in work:
            _check_options(group)
            check_grads(params)
        for group, params in work:
            if math.isfinite(value):
                group["max_loss"] = max(group["max_loss"] or 0.0, value)
            alike: dict[Any, list[Tensor]] = {}
            for p in params:
                if not self.state[p]:
                    self.state[p].update(new_state(p))
                alike.setdefault((p.device, p.dtype, p.shape, self.state[p]["exp_avg"].shape), []).append(p)
            for matrices in alike.values():
                if matrices[0].numel():
                    self._step_matrices(group, matrices, _rank(group, matrices[0].shape, value))
        return loss

    def _step_matrices(self, group: dict[str, Any], params: list[Tensor], rank: int) -> None:
        """Steps parameters of one device, dtype and shape, whose states are of one rank."""
        states = [self.state[p] for p in params]
        grads = [p.grad for p in params if p.grad is not None]
        moments = moved_moments(states, grads, rank, group["momentum"], group["beta2"])
        for i, state in enumerate(states):
            state.update({key: moments[key][i].clone() for key in KEYS})  # a view would keep the others' alive
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
        updates = (left * ratio[:, None, :]) @ right.mT
        scale = resolve_rule(group["adjust_lr_fn"])(params[0].shape)
        apply(
            params,
            list(updates.unbind(0)),
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            scales=[scale] * len(params),
        )


def _rank(group: dict[str, Any], shape: torch.Size, loss: float) -> int:
    most = min(shape) if group["max_rank"] is None else min(group["max_rank"], *shape)
    return decide_rank(loss, group["max_loss"], most, min(group["min_rank"], most))


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
