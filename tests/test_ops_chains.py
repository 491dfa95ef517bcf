"""The op `chains`: what it computes on the reference, and which programs and workspaces it wants."""

from dataclasses import replace

import pytest
import torch
from cases import programs_of_one, small_program

from muon_kernels import ops
from muon_kernels.coefficients import resolve_coefficients
from muon_kernels.orthogonalize import Orthogonalizer
from muon_kernels.program import BUFFER_FIELDS, PRODUCT_FIELDS, elements_with_counters, rows_of, view


def test_chains():
    """(X X^T / 2 + 2 I) X - X, written down by hand."""
    program = small_program()
    workspace = torch.full((program.elements,), torch.nan, dtype=torch.float64)
    buffers = rows_of(program.buffers, BUFFER_FIELDS)
    xs = [torch.randn(*buffers[i][1:4], dtype=torch.float64) for i in (0, 3)]
    for x, buffer in zip(xs, (buffers[0], buffers[3]), strict=True):
        view(workspace, buffer).copy_(x)
    ops.chains(workspace, program)
    wide, tall = xs
    torch.testing.assert_close(view(workspace, buffers[2]), wide @ wide.mT @ wide / 2 + wide)
    torch.testing.assert_close(view(workspace, buffers[5]), tall @ tall.mT @ tall / 2 + tall)


def test_products_one_at_a_time_do_the_same():
    groups = [(2, 40, 60), (3, 96, 33)]
    options = {"method": "squaring", "compute_dtype": torch.float32, "device": torch.device("cpu")}
    made = Orthogonalizer(groups, resolve_coefficients("original", 5), **options)
    program = made.plan.program
    results = []
    for programs in ([program], list(programs_of_one(program))):
        torch.manual_seed(0)
        workspace = torch.randn(program.elements) / 50
        for one in programs:
            ops.chains(workspace, one)
        results.append(workspace)
    assert len(programs) == len(program.products) // PRODUCT_FIELDS > 20 and torch.equal(*results)


def test_chains_wants_its_workspace():
    program = small_program()
    for workspace in (torch.empty(program.elements + 1), torch.empty(program.elements, 2)[:, 0]):
        with pytest.raises(ValueError, match=rf"workspace must be contiguous \[{program.elements}\], got"):
            ops.chains(workspace, program)
    with pytest.raises(TypeError, match="workspace must have one real floating dtype, got torch.int32"):
        ops.chains(torch.empty(program.elements, dtype=torch.int32), program)


@pytest.mark.parametrize(("dtype", "counters"), [(torch.bfloat16, 8), (torch.float32, 4), (torch.float64, 2)])
def test_chains_wants_room_for_buffers_and_counters(dtype, counters):
    """Four bytes for each of the four products."""
    program = small_program()
    fits, short = (replace(program, elements=program.end + counters - lacking) for lacking in (0, 1))
    ops.chains(torch.zeros(fits.elements, dtype=dtype), fits)
    message = rf"program.elements must be at least {fits.elements}, .* \({program.end}\) .* got {short.elements}"
    with pytest.raises(ValueError, match=message):
        ops.chains(torch.zeros(short.elements, dtype=dtype), short)


def test_counters_fill_whole_elements():
    assert [elements_with_counters(10, counters, 8) for counters in range(4)] == [10, 11, 11, 12]
