"""The cases that every op is tested with, for every backend: shapes, strides and the tensors of a call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from muon_kernels.backends.products import Op, one_by_one
from muon_kernels.described import describe
from muon_kernels.program import PRODUCT_FIELDS, SCALAR_FIELDS, Program, ProgramBuilder, rows_of

SHAPES = [(1, 1), (1, 9), (9, 1), (8, 8), (7, 33), (33, 7), (64, 64), (16, 200), (130, 72)]
"""(rows, cols) of the matrices in the op tests: units, odd sizes, multiples of 8, tall and wide."""

LAYOUTS = ["contiguous", "padded", "transposed", "offset"]


def in_layout(x: Tensor, layout: str) -> Tensor:
    """A copy of [..., rows, cols] with the same values in another memory layout."""
    *batch, rows, cols = x.shape
    if layout == "contiguous":
        return x.clone()
    if layout == "padded":
        storage = x.new_full((*batch, rows, cols + 8), torch.nan)
        view = storage[..., :cols]
    elif layout == "transposed":
        view = x.new_full((*batch, cols, rows), torch.nan).mT
    else:
        view = x.new_full((x.numel() + 3,), torch.nan)[3:].view(x.shape)
    return view.copy_(x)


@dataclass
class Products:
    """The operands of one symm_gemm or gemm_add call over a mixed problem list."""

    a: list[Tensor]
    b: list[Tensor]
    c: list[Tensor]
    outs: list[Tensor]


def symmetric_products(dtype: torch.dtype, device: str, *, with_c: bool) -> Products:
    """X X^T over mixed shapes, layouts and batch sizes, with a symmetric C."""
    p = Products([], [], [], [])
    for i, (rows, cols) in enumerate(SHAPES):
        layout = LAYOUTS[i % len(LAYOUTS)]
        x = in_layout((torch.randn(1 + i % 3, rows, cols) / cols**0.5).to(device, dtype), layout)
        c = torch.randn(x.shape[0], rows, rows).to(device, dtype)
        p.a.append(x)
        p.b.append(x.mT)
        if with_c:
            p.c.append(in_layout(c + c.mT, layout))
        p.outs.append(in_layout(torch.full_like(c, torch.nan), layout))
    return p


def general_products(dtype: torch.dtype, device: str, *, with_c: bool) -> Products:
    """A B over mixed shapes, layouts and batch sizes; A square."""
    p = Products([], [], [], [])
    for i, (rows, cols) in enumerate(SHAPES):
        layout = LAYOUTS[(i + 1) % len(LAYOUTS)]
        batch = 1 + i % 3
        p.a.append(in_layout((torch.randn(batch, rows, rows) / rows**0.5).to(device, dtype), LAYOUTS[i % 4]))
        p.b.append(in_layout(torch.randn(batch, rows, cols).to(device, dtype), layout))
        if with_c:
            p.c.append(in_layout(torch.randn(batch, rows, cols).to(device, dtype), layout))
        p.outs.append(in_layout(torch.full((batch, rows, cols), torch.nan).to(device, dtype), layout))
    return p


def small_program() -> Program:
    """Two chains of two products each; those of the second work on a tall matrix."""
    build = ProgramBuilder(element_size=4)
    for rows, cols, batch in ((3, 5, 2), (7, 4, 1)):
        build.chain(batch)
        x = build.buffer(rows, cols)
        wide = x if rows <= cols else x.mT
        square, out = build.buffer(wide.rows, wide.rows), build.buffer(rows, cols)
        build.symm_gemm(wide, wide.mT, square, alpha=0.5, delta=2.0)
        build.gemm_add(square, wide, out if rows <= cols else out.mT, c=wide, beta=-1.0)
    return build.build()


def product_by_product(symm_gemm: Op, gemm_add: Op, workspace: Tensor, program: Program) -> None:
    """What `chains` is to do, in two other ops of the same backend."""
    lists = {name: getattr(program, name) for name in ("buffers", "products", "scalars", "chains")}
    one_by_one(symm_gemm, gemm_add)([workspace], **lists)


def programs_of_one(program: Program) -> Iterator[Program]:
    """The products of a program, chain by chain, each by itself on the same buffers."""
    chains = rows_of(program.chains, 2)
    owners = [chain for chain, (_, count) in enumerate(chains) for _ in range(count)]
    products, scalars = rows_of(program.products, PRODUCT_FIELDS), rows_of(program.scalars, SCALAR_FIELDS)
    for owner, product, numbers in zip(owners, products, scalars, strict=True):
        counts = [count for chain, (buffers, _) in enumerate(chains) for count in (buffers, int(chain == owner))]
        yield replace(program, products=tuple(product), scalars=tuple(numbers), chains=tuple(counts))


def tensor_list(dtype: torch.dtype, device: str) -> list[Tensor]:
    """Many matrices of mixed shapes and layouts, for the multi-tensor ops."""
    return [
        in_layout(torch.randn(shape).to(device, dtype), LAYOUTS[i % len(LAYOUTS)])
        for i, shape in enumerate([*SHAPES, (0, 5), (127, 129)])
    ]


DIFFERENT_LISTS = [
    [torch.zeros(2, 3)],
    [torch.zeros(3, 2)],
    [torch.zeros(6)],
    [torch.zeros(2, 3, 1)],
    [torch.zeros(2, 3, dtype=torch.bfloat16)],
    [torch.zeros(2, 3, dtype=torch.float16)],
    [torch.zeros(2, 3, dtype=torch.float64)],
    [torch.zeros(2, 3, dtype=torch.int32)],
    [torch.zeros(2, 3, dtype=torch.bool)],
    [torch.zeros(2, 3).to_sparse()],
    [torch.zeros(2, 3, device="meta")],
    [torch.zeros(2, 3), torch.zeros(2, 3)],
    [torch.zeros(2), torch.zeros(3)],
    [],
]


def assert_descriptions_differ():
    descriptions = [describe(tensors).like for tensors in DIFFERENT_LISTS]
    for i, one in enumerate(descriptions):
        assert [one == other for other in descriptions] == [i == j for j in range(len(descriptions))]
    same = [[torch.ones(2, 3)], [nn.Parameter(torch.ones(3, 2).mT)]]
    assert all(describe(tensors).like == descriptions[0] for tensors in same)


SIZES = (0, 1, 3, 7, 8, 9, 1023, 2048, 4095, 4096, 4097, 6144, 6145, 6147, 8191, 8192, 8193, 20000, 1_000_003)
"""Of vectors: around those of packs, chunks and blocks of the CUDA kernels."""

UNIT32 = 2.0**-24


def randn(shape, dtype, offset=0):
    """Contiguous random numbers that begin `offset` elements into their storage."""
    size = torch.Size(shape).numel()
    return torch.randn(size + offset, device="cuda").to(dtype)[offset:].view(shape)


def assert_rounded_once(actual, oracle, terms):
    """`actual` is `oracle` rounded to its dtype, give or take a few float32 operations on numbers like `terms`."""
    info = torch.finfo(actual.dtype)
    allowed = info.eps / 2 * 1.01 * oracle.abs() + 8 * UNIT32 * terms + info.smallest_normal * info.eps
    error = (actual.double() - oracle).abs()
    worst = (error - allowed).max().item() if error.numel() else -1.0
    assert not worst > 0 and error.isfinite().all(), f"exceeds the allowed error by {worst:.3e}"
