"""apply: p <- (1 - lr weight_decay) p - lr scale update, in one pass; each p is rounded once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementwise import TYPES, WARPS, pick_pointer, runs, tile_indices
from .launch import Launch, run


def apply(
    params: list[Tensor],
    updates: list[Tensor],
    *,
    lr: Tensor,
    weight_decay: float,
    scales: list[float],
    found_inf: Tensor | None,
) -> None:
    """See `muon_kernels.ops.apply`. One launch for up to 64 consecutive tensors that look alike."""
    launches = plan(params, updates, lr=lr, weight_decay=weight_decay, scales=scales, found_inf=found_inf)
    run(launches, params[0].device)
    # Autograd does not see writes through addresses; a stale saved tensor must be an error in backward.
    torch.autograd.graph.increment_version(params)


def plan(
    params: list[Tensor],
    updates: list[Tensor],
    *,
    lr: Tensor,
    weight_decay: float,
    scales: list[float],
    found_inf: Tensor | None,
) -> list[Launch]:
    """The launches of one call."""
    decay, steps = factors(lr, weight_decay, scales)
    rate = None if lr.is_cpu else lr
    launches = []
    for part in runs("params and updates", (params, updates), labels=scales):
        tiles = part.tiles
        arguments = {
            "parameters": part.addresses[0],
            "updates": part.addresses[1],
            "rows": tiles.rows,
            "cols": tiles.cols,
            "strides": tiles.strides,
            "decay": decay,
            "step": steps[part.first],
            "lr": rate,
            "found_inf": found_inf,
            "COUNT": len(part.addresses[0]),
            "PARAM": TYPES[params[0].dtype],
            "UPDATE": TYPES[updates[0].dtype],
            "ALIGNED": part.aligned,
            "TILE_ROWS": tiles.tile[0],
            "TILE_COLS": tiles.tile[1],
        }
        if tiles.count:
            grid = (tiles.count, part.count)
            launches.append(Launch(apply_kernel, grid, arguments, WARPS, free=("parameters", "updates")))
    return launches


def factors(lr: Tensor, weight_decay: float, scales: list[float]) -> tuple[float, list[float]]:
    """What `factors_at` takes: 1 - lr weight_decay and every lr scale, or weight_decay and scales.

    A rate on the CPU is read here, in double; one on the device by the kernel.
    """
    if not lr.is_cpu:
        return float(weight_decay), [float(scale) for scale in scales]
    rate = lr.item()
    return float(1 - rate * weight_decay), [float(rate * scale) for scale in scales]


@triton.jit
def apply_kernel(
    parameters,
    updates,
    rows,
    cols,
    strides,
    decay,
    step,
    lr,
    found_inf,
    COUNT: tl.constexpr,
    PARAM: tl.constexpr,
    UPDATE: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLS: tl.constexpr,
):
    """Program (tile, entry)."""
    rate = lr if lr is None else tl.load(lr).to(tl.float64)
    decay, step = factors_at(rate, decay, step)
    entry = tl.program_id(1)
    row, col, mask = tile_indices(tl.program_id(0), rows, cols, TILE_ROWS, TILE_COLS)
    param_at = pick_pointer(parameters, entry, COUNT, PARAM, ALIGNED) + row * strides[0][0] + col * strides[0][1]
    update_at = pick_pointer(updates, entry, COUNT, UPDATE, ALIGNED) + row * strides[1][0] + col * strides[1][1]
    param = tl.load(param_at, mask, 0.0)
    update = tl.load(update_at, mask, 0.0).to(tl.float32)
    tl.store(param_at, stepped(param, update, decay, step, found_inf), mask)


@triton.jit
def factors_at(rate, decay, step):
    """1 - lr weight_decay and lr scale; at a rate from the device they are made of what `factors` gives for them."""
    if rate is not None:
        decay = (1.0 - rate * decay).to(tl.float32)
        step = (rate * step).to(tl.float32)
    return decay, step


@triton.jit
def stepped(param, update, decay, step, found_inf):
    """New values of parameters from float32 updates. What is fused is said, so that all kernels round alike."""
    old = param.to(tl.float32)
    new = tl.fma(old, decay, update * step * -1.0)
    if found_inf is not None:
        new = tl.where(tl.load(found_inf) != 0, old, new)
    return new.to(param.dtype)
