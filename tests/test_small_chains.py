"""The plan of a chain in one block's shared memory (csrc/sm90/small_plan.cu), without a GPU: run in plain torch."""

import math
import subprocess
from dataclasses import replace

import pytest
import torch
from cases import product_by_product
from test_build import ROOT

from muon_kernels.backends import reference
from muon_kernels.coefficients import resolve_coefficients
from muon_kernels.orthogonalize import _gram_plan, chain_plan
from muon_kernels.program import BUFFER_FIELDS, PRODUCT_FIELDS, SCALAR_FIELDS, ProgramBuilder, rows_of, view

METHODS = ["standard", "gram", "squaring"]


@pytest.fixture(scope="module")
def planner(nvcc, tmp_path_factory):
    """The command tests/host/small_plan.cpp."""
    target = tmp_path_factory.mktemp("small") / "plan"
    sources = [ROOT / "tests" / "host" / "small_plan.cpp", ROOT / "csrc" / "sm90" / "small_plan.cu"]
    subprocess.run([nvcc, "-std=c++17", "-cudart=none", "-x", "c++", *sources, "-o", target], check=True)
    return target


def factor(number):
    """As the kernel takes it, in float32; nine digits tell which number that is."""
    return torch.tensor(number, dtype=torch.float32).item()


def plans(planner, program):
    """For every chain the lines of its plan, as (kind, numbers); none if it is not small."""
    buffers, products, scalars = (
        rows_of(numbers, width)
        for numbers, width in (
            (program.buffers, BUFFER_FIELDS),
            (program.products, PRODUCT_FIELDS),
            (program.scalars, SCALAR_FIELDS),
        )
    )
    for own, length in rows_of(program.chains, 2):
        numbers = [buffers[0][1], own, length]
        for offset, _, *rest in buffers[:own]:
            numbers += (offset, *rest)
        for (kind, *codes), factors in zip(products[:length], scalars[:length], strict=True):
            operands, powers = codes[:5], codes[5:]
            numbers += (kind, *(n for x in operands for n in (x // 2, int(x > 0 and x % 2))), *powers, *factors)
        text = subprocess.run([planner], input=" ".join(map(str, numbers)), capture_output=True, text=True, check=True)
        lines = [line.split() for line in text.stdout.splitlines()]
        yield [(kind, [factor(float(x)) if "." in x or "e" in x else int(x) for x in rest]) for kind, *rest in lines]
        buffers, products, scalars = buffers[own:], products[length:], scalars[length:]


class Block:
    """Shared memory, two bytes an element, at first all NaN."""

    def __init__(self, size):
        self.memory = torch.full((size // 2,), math.nan, dtype=torch.float64)
        self.gain = 1.0

    def matrix(self, offset, box_stride, rows, cols):
        """A copy of a matrix without what fills it up, which must be zeros, and the function that writes it."""
        boxes = -(-cols // 64)
        where = self.memory[offset // 2 : (offset + boxes * box_stride) // 2].view(boxes, box_stride // 128, 64)
        assert where.numel() == boxes * box_stride // 2, "past the end"

        def write(x):
            whole = torch.zeros(where.shape[1], 64 * boxes, dtype=x.dtype)
            whole[:rows, :cols] = x
            where.copy_(whole.view(-1, boxes, 64).transpose(0, 1))

        return where.transpose(0, 1).reshape(where.shape[1], -1)[:rows, :cols], write

    def find_gain(self, numbers):
        gram = self.matrix(*numbers[:2], numbers[2], numbers[2])[0]
        self.gain = float((gram.trace() / gram.norm()).sqrt())

    def multiply(self, numbers):
        places = rows_of(numbers[:8], 2)
        m, n, k, a_is_mn_major, b_is_mn_major, has_c, symmetric, *factors, p, q, r = numbers[8:]
        alpha, beta, delta = (x * self.gain**power for x, power in zip(factors, (p, q, r), strict=True))
        a = self.matrix(*places[0], *((k, m) if a_is_mn_major else (m, k)))[0]
        b = self.matrix(*places[1], *((k, n) if b_is_mn_major else (n, k)))[0]
        result = alpha * (a.mT if a_is_mn_major else a) @ (b if b_is_mn_major else b.mT)
        result.diagonal().add_(delta)
        if has_c:
            result += beta * self.matrix(*places[2], m, n)[0]
        self.matrix(*places[3], m, n)[1](result.tril() + result.tril(-1).mT if symmetric else result)


def run(lines, workspace, batch):
    """Block after block, so that the last one loads after the first has stored."""
    size = next(numbers[0] for kind, numbers in lines if kind == "shared")
    for index in range(batch):
        block = Block(size)
        order = {"shared": 0, "load": 1, "gain": 2, "product": 2, "store": 3}
        for kind, numbers in sorted(lines, key=lambda line: order[line[0]]):
            if kind == "product":
                block.multiply(numbers)
            elif kind == "gain":
                block.find_gain(numbers)
            elif kind != "shared":
                shared, (rows, cols, offset, batch_stride, row_stride) = numbers[:2], numbers[2:]
                there = view(workspace, (offset, batch, rows, cols, batch_stride, row_stride))[index]
                here, write = block.matrix(*shared, rows, cols)
                write(there) if kind == "load" else there.copy_(here)


def assert_same(planner, program, inputs, outputs):
    """The chains, all of them small, leave in `outputs` what products in the workspace leave there."""
    workspace = torch.full((program.elements,), math.nan, dtype=torch.float64)
    for buffer in inputs:
        x = torch.randn(buffer[1:4], dtype=torch.float64)
        view(workspace, buffer).copy_(x / x.norm(dim=(1, 2), keepdim=True))
    expected = workspace.clone()
    factors = tuple(map(factor, program.scalars))
    product_by_product(reference.symm_gemm, reference.gemm_add, expected, replace(program, scalars=factors))
    batches = [buffer[1] for buffer in inputs]
    for lines, batch in zip(plans(planner, program), batches, strict=True):
        assert lines, "not small"
        run(lines, workspace, batch)
    for buffer in outputs:
        assert view(expected, buffer).isfinite().all()
        torch.testing.assert_close(view(workspace, buffer), view(expected, buffer), rtol=1e-9, atol=1e-11)


def plan_of(groups, method, dtype, steps=5, factored=True):
    return chain_plan(tuple(groups), tuple(resolve_coefficients("original", steps)), method, dtype, factored)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("steps", [1, 4, 5])
def test_does_what_its_products_do(planner, steps, dtype, method):
    for groups in ([(3, 128, 128)], [(2, 128, 256), (2, 256, 128)], [(3, 77, 131), (3, 131, 77), (2, 1, 9)]):
        for factored in (True, False):
            plan = plan_of(groups, method, dtype, steps, factored)
            outputs = [buffer for buffer in (*plan.factors, *plan.xs) if buffer is not None]
            assert_same(planner, plan.program, plan.normalised, outputs)


def test_does_the_gram_matrices_of_preconditioning(planner):
    plan = plan_of([(3, 77, 131), (3, 131, 77)], "standard", torch.float16)
    program, grams = _gram_plan(plan.normalised, plan.program.elements, torch.float16)
    assert_same(planner, program, plan.normalised, grams)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("shape", "small"),
    [
        ((1, 1), True),
        ((128, 128), True),
        ((320, 100), True),
        ((64, 512), True),
        ((129, 129), False),
        ((64, 999), False),
    ],
)
def test_which_chains_are_small(planner, shape, small, method):
    (lines,) = plans(planner, plan_of([(2, *shape)], method, torch.float16).program)
    assert bool(lines) == small


def test_only_the_gain_that_was_found_last_is_there(planner):
    for chosen, small in ((0, False), (1, True)):
        build = ProgramBuilder(2)
        build.chain(2)
        x, gram, square = build.buffer(64, 64), build.buffer(64, 64), build.buffer(64, 64)
        build.symm_gemm(x, x.mT, gram)
        norms = [build.gram_norms(gram), build.gram_norms(gram)]
        build.symm_gemm(gram, gram, square, norms=norms[chosen], powers=(4, 0, 0))
        (lines,) = plans(planner, build.build())
        assert bool(lines) == small


def test_two_blocks_fit_on_a_multiprocessor(planner):
    (lines,) = plans(planner, plan_of([(256, 128, 128)], "standard", torch.float16).program)
    assert lines[0] == ("shared", [96 * 1024])


def test_a_block_stores_nowhere_where_another_loads(planner):
    build = ProgramBuilder(2)
    build.chain(2)
    x, y, z = build.buffer(64, 64), build.buffer(32, 32), build.buffer(64, 64)
    (inside,) = build.carve(x, 32, 1)
    build.symm_gemm(x, x.mT, z)
    build.symm_gemm(y, y.mT, inside)  # its first two lie in the first X, and nobody reads them
    assert list(plans(planner, build.build())) == [[]]


def test_what_came_through_another_buffer_is_not_read(planner):
    build = ProgramBuilder(2)
    build.chain(2)
    x, y, z, w = (build.buffer(64, 64) for _ in range(4))
    (inside,) = build.carve(y, 64, 1)
    build.symm_gemm(x, x.mT, inside)
    build.symm_gemm(inside, inside, z)
    build.symm_gemm(y, y, w)
    assert list(plans(planner, build.build())) == [[]]
