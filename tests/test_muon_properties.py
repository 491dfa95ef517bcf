"""Any parameters, in any layouts and dtypes, with any of the gradients missing: as if each matrix were alone."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from muon_kernels import Muon
from muon_kernels.matrices import split, step_factor

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
SIDES = st.integers(1, 13)


@st.composite
def parameters(draw):
    """(shape, layout, dtype, has a gradient) of one parameter."""
    rows, cols, batch = draw(SIDES), draw(SIDES), draw(st.integers(1, 3))
    shape, layout = draw(
        st.sampled_from(
            [
                ((rows, cols), None),
                ((rows, cols, batch, 2), "flatten"),
                ((rows, cols, batch), "conv_batched"),
                ((batch, rows, cols), "batch"),
                ((rows, cols), "transposed"),
                ((rows * batch, cols), f"rows:{batch}"),
                ((rows * batch, cols * 2), f"grid:{batch}x2"),
                ((3 * rows, cols), "qkv"),
                ((rows + 2, cols), (rows, 2)),
            ]
        )
    )
    return shape, layout, draw(st.sampled_from(DTYPES)), draw(st.booleans())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    cases=st.lists(parameters(), min_size=1, max_size=6),
    nesterov=st.booleans(),
    method=st.sampled_from(["auto", "standard", "gram", "squaring"]),
    max_bytes=st.sampled_from([1, 2**12, None]),
)
def test_as_if_each_matrix_were_alone(cases, nesterov, method, max_bytes):
    generator = torch.Generator().manual_seed(len(cases))
    options = {"lr": 0.1, "weight_decay": 0.2, "nesterov": nesterov, "method": method, "compute_dtype": torch.float32}
    params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape, _, dtype, _ in cases]
    groups = [{"params": [p], "layout": layout} for p, (_, layout, _, _) in zip(params, cases, strict=True)]
    optimizer = Muon(groups, **options, max_workspace_bytes=max_bytes)
    alone = [[nn.Parameter(v.detach().clone()) for v in split(p, c[1])] for p, c in zip(params, cases, strict=True)]
    singles = []
    for parts, (shape, layout, _, _) in zip(alone, cases, strict=True):
        factor = step_factor(shape, layout)
        singles += [Muon([q], **options | {"lr": 0.1 * factor, "weight_decay": 0.2 / factor}) for q in parts]
    for _ in range(2):
        for p, parts, (_, layout, dtype, has_grad) in zip(params, alone, cases, strict=True):
            p.grad = torch.randn(p.shape, generator=generator).to(dtype) if has_grad else None
            for q, grad in zip(parts, split(p.grad, layout) if has_grad else [None] * len(parts), strict=True):
                q.grad = None if grad is None else grad.clone()
        before = [None if p.grad is None else p.grad.clone() for p in params]
        optimizer.step()
        for single in singles:
            single.step()
        for p, grad in zip(params, before, strict=True):
            assert p.grad is None if grad is None else torch.equal(p.grad, grad)
    for p, parts, (_, layout, dtype, has_grad) in zip(params, alone, cases, strict=True):
        assert (p in optimizer.state) == has_grad
        # Equal up to the order in which a product of other strides is summed, and a last bit of 16-bit parameters.
        tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
        for view, q in zip(split(p.detach(), layout), parts, strict=True):
            torch.testing.assert_close(view, q.detach(), rtol=tolerance, atol=tolerance)
