"""gemm_apply: p <- (1 - lr weight_decay) p - lr scale a b: gemm_add's kernel, with `apply` where that stores.

Products are rounded to the operands' dtype before they meet the parameters: every bit is as `gemm_add` and `apply` have
it. Parameters are tensors of their own, whose addresses travel like those of the elementwise ops; matrices of a batch
whose parameters differ in strides, alignment or scale become entries of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import gemm
from .apply import factors, factors_at, stepped
from .elementwise import MAX_TENSORS, TYPES, pick_pointer, table
from .launch import ALIGNMENT, Launch, run, unspecialized
from .operands import pick, pointers
from .tiles import each_tile

PIECE = tl.constexpr(256)
"""Bytes of a row of parameters that are in registers at once, beside the tile of the product in 16 bit: with twice as
many, tiles of 128 x 256 spill, and fewer of the small ones fit on a multiprocessor."""


def gemm_apply(
    a: list[Tensor],
    b: list[Tensor],
    params: list[Tensor],
    *,
    lr: Tensor,
    weight_decay: float,
    scales: list[float],
    found_inf: Tensor | None,
) -> None:
    """See `muon_kernels.ops.gemm_apply`. One launch for up to 8 entries and 64 parameters that look alike."""
    launches = plan(a, b, params, lr=lr, weight_decay=weight_decay, scales=scales, found_inf=found_inf)
    run(launches, params[0].device)
    # Autograd does not see writes through addresses; a stale saved tensor must be an error in backward.
    torch.autograd.graph.increment_version(params)


def plan(
    a: list[Tensor],
    b: list[Tensor],
    params: list[Tensor],
    *,
    lr: Tensor,
    weight_decay: float,
    scales: list[float],
    found_inf: Tensor | None,
) -> list[Launch]:
    """The launches of one call."""
    decay, steps = factors(lr, weight_decay, scales)
    addresses = [param.data_ptr() for param in params]
    looks = [(p.stride(), at % ALIGNMENT, scale) for p, at, scale in zip(params, addresses, scales, strict=True)]
    entries = list(_entries(a, b, looks))
    if not entries:
        return []
    lefts, rights, firsts = map(list, zip(*entries, strict=True))
    layouts = [(gemm.layout(p.as_strided((1, *p.shape), (0, *p.stride()))),) for p in (params[i] for i in firsts)]
    launches = []
    for kind, members in gemm.kinds("gemm_add", lefts, rights, layouts).items():
        for chosen in _cut(members, lefts):
            own: list[int] = []
            targets = []
            for i in chosen:
                first = firsts[i]
                targets.append((unspecialized(len(own)), *params[first].stride(), steps[first]))
                own += addresses[first : first + len(lefts[i])]
            at = table(own)
            results = {"parameters": at, "targets": tuple(targets)}
            rest = {
                "decay": decay,
                "lr": None if lr.is_cpu else lr,
                "found_inf": found_inf,
                "COUNT": len(at),
                "PARAM": TYPES[params[0].dtype],
                "UPDATE": TYPES[a[0].dtype],
                "ALIGNED": kind.layouts[2].aligned,
            }
            launch = gemm.launch("gemm_add", gemm_apply_kernel, kind, lefts, rights, chosen, results, rest)
            launches.append(launch._replace(free=("parameters",)))
    return launches


def _entries(a: list[Tensor], b: list[Tensor], looks: Sequence[object]) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Cuts entries where their parameters' looks change or a table is full; with the index of the first parameter."""
    start = 0
    for left, right in zip(a, b, strict=True):
        first = start
        for _, alike in groupby(looks[start : start + len(left)]):
            last = first + sum(1 for _ in alike)
            for one in range(first, last, MAX_TENSORS):
                part = slice(one - start, min(last, one + MAX_TENSORS) - start)
                yield left[part], right[part], one
            first = last
        start += len(left)


def _cut(members: list[int], batches: list[Tensor]) -> Iterator[list[int]]:
    """Members by launches: a table holds the parameters of all entries."""
    chosen: list[int] = []
    matrices = 0
    for i in members:
        matrices += len(batches[i])
        if len(chosen) == gemm.MAX_ENTRIES or matrices > MAX_TENSORS:
            yield chosen
            chosen, matrices = [], len(batches[i])
        chosen.append(i)
    yield chosen


@triton.jit
def gemm_apply_kernel(
    a,
    b,
    parameters,
    targets,
    sizes,
    decay,
    lr,
    found_inf,
    COUNT: tl.constexpr,
    PARAM: tl.constexpr,
    UPDATE: tl.constexpr,
    ALIGNED: tl.constexpr,
    ENTRIES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN_K: tl.constexpr,
    PROGRAMS: tl.constexpr,
    TRANS_A: tl.constexpr,
    TRANS_B: tl.constexpr,
):
    """targets: of each entry, the place of its first parameter in `parameters`, row and column stride, and step."""
    each_tile(
        a,
        b,
        sizes,
        (
            parameters,
            targets,
            decay,
            lr if lr is None else tl.load(lr).to(tl.float64),
            found_inf,
            COUNT,
            PARAM,
            UPDATE,
            ALIGNED,
        ),
        _step,
        ENTRIES,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        GROUP,
        EVEN_K,
        PROGRAMS,
        TRANS_A,
        TRANS_B,
    )


@triton.jit
def _step(
    total,
    entry,
    batch,
    row,
    col,
    m,
    n,
    arguments,
    ENTRIES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Steps the parameters under a tile of a b at (row, col)."""
    parameters, targets, decay, rate, found_inf = arguments[:5]
    COUNT: tl.constexpr = arguments[5]
    PARAM: tl.constexpr = arguments[6]
    UPDATE: tl.constexpr = arguments[7]
    ALIGNED: tl.constexpr = arguments[8]
    place = (pick(targets, 0, entry, ENTRIES) >> 1).to(tl.int32) + batch
    start = pick_pointer(parameters, place, COUNT, PARAM, ALIGNED)
    row_stride, col_stride = pick(targets, 1, entry, ENTRIES), pick(targets, 2, entry, ENTRIES)
    decay, step = factors_at(rate, decay, pick(targets, 3, entry, ENTRIES))
    _step_pieces(
        total.to(UPDATE), start, row_stride, col_stride, row, col, m, n, decay, step, found_inf, BLOCK_M, BLOCK_N
    )


@triton.jit
def _step_pieces(
    update,
    start,
    row_stride,
    col_stride,
    row,
    col,
    m,
    n,
    decay,
    step,
    found_inf,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One after the other, as a whole tile and its parameters would not fit in registers."""
    if BLOCK_N * start.dtype.element_ty.primitive_bitwidth > 8 * PIECE:
        HALF: tl.constexpr = BLOCK_N // 2
        left, right = tl.split(update.reshape(BLOCK_M, 2, HALF).permute(0, 2, 1))
        _step_pieces(left, start, row_stride, col_stride, row, col, m, n, decay, step, found_inf, BLOCK_M, HALF)
        col += HALF
        _step_pieces(right, start, row_stride, col_stride, row, col, m, n, decay, step, found_inf, BLOCK_M, HALF)
    else:
        rows = row + tl.arange(0, BLOCK_M)
        cols = col + tl.arange(0, BLOCK_N)
        mask = (rows < m)[:, None] & (cols < n)[None, :]
        at = pointers(start, row_stride, col_stride, rows, cols)
        param = tl.load(at, mask, 0.0)
        tl.store(at, stepped(param, update.to(tl.float32), decay, step, found_inf), mask)
