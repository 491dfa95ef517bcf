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
    """The launches of one call. A rate on the CPU is read here, in double; one on the device by the kernel."""
    rate = lr.item() if lr.is_cpu else 0.0
    launches = []
    for part in runs("params and updates", (params, updates), labels=scales):
        scale = scales[part.first]
        tiles = part.tiles
        arguments = {
            "parameters": part.addresses[0],
            "updates": part.addresses[1],
            "rows": tiles.rows,
            "cols": tiles.cols,
            "strides": tiles.strides,
            "decay": float(1 - rate * weight_decay),
            "step": float(rate * scale),
            "lr": None if lr.is_cpu else lr,
            "weight_decay": float(weight_decay),
            "scale": float(scale),
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
    weight_decay,
    scale,
    found_inf,
    COUNT: tl.constexpr,
    PARAM: tl.constexpr,
    UPDATE: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLS: tl.constexpr,
):
    """Program (tile, entry). With lr on the device, `decay` and `step` are computed from it."""
    if lr is not None:
        rate = tl.load(lr).to(tl.float64)
        decay = (1.0 - rate * weight_decay).to(tl.float32)
        step = (rate * scale).to(tl.float32)
    entry = tl.program_id(1)
    row, col, mask = tile_indices(tl.program_id(0), rows, cols, TILE_ROWS, TILE_COLS)
    param_at = pick_pointer(parameters, entry, COUNT, PARAM, ALIGNED) + row * strides[0][0] + col * strides[0][1]
    update_at = pick_pointer(updates, entry, COUNT, UPDATE, ALIGNED) + row * strides[1][0] + col * strides[1][1]
    param = tl.load(param_at, mask, 0.0).to(tl.float32)
    update = tl.load(update_at, mask, 0.0).to(tl.float32)
    new = param * decay - step * update
    if found_inf is not None:
        new = tl.where(tl.load(found_inf) != 0, param, new)
    tl.store(param_at, new.to(PARAM), mask)
