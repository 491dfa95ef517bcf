"""Any parameters, in any layouts, memory and dtypes, with any variants and any of the gradients missing: as if each
matrix were alone, and nothing else is touched."""

import torch
from cases import LAYOUTS, in_layout
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from muon_kernels import Muon
from muon_kernels.matrices import split, step_factor
from muon_kernels.variants import AdaMuon, NorMuon

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
SIDES = st.integers(1, 13)


def interleaved_rows(tensor):
    """A layout of its own: even rows and odd rows."""
    return [matrix for matrix in (tensor[::2], tensor[1::2]) if matrix.numel()]


@st.composite
def parameters(draw):
    """(shape, layout, memory, dtype, has a gradient) of one parameter; the layout "auxiliary" is no matrix's."""
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
                ((rows, cols * batch), f"cols:{batch}"),
                ((rows * batch, cols * 2), f"grid:{batch}x2"),
                ((3 * rows, cols), "qkv"),
                ((3 * cols, cols), "auto_qkv"),
                ((rows + 2, cols), (rows, 2)),
                ((rows, cols), interleaved_rows),
                ((rows,), "auxiliary"),
                ((rows, cols, batch), "auxiliary"),
            ]
        )
    )
    # Merging the trailing dimensions needs them next to each other.
    memory = draw(st.sampled_from(LAYOUTS if len(shape) == 2 else ["contiguous", "offset"]))
    return shape, layout, memory, draw(st.sampled_from(DTYPES)), draw(st.booleans())


OPTIONS = st.fixed_dictionaries(
    {
        "nesterov": st.booleans(),
        "maximize": st.booleans(),
        "adjust_lr_fn": st.sampled_from(["original", "match_rms_adamw"]),
        "method": st.sampled_from(["auto", "standard", "gram", "squaring", "svd"]),
        "momentum_dtype": st.sampled_from([None, torch.float32]),
        "master_dtype": st.sampled_from([None, torch.float32, torch.float64]),
        "normalizer": st.sampled_from([None, NorMuon(), AdaMuon(eps=1e-3)]),
        "weight_decay_rule": st.sampled_from(["decoupled", "cautious"]),
    }
)


def random(shape, dtype, memory, generator):
    """In a memory layout of `cases.in_layout`, which needs two dimensions; what lies between the elements is NaN."""
    x = torch.randn(shape, generator=generator).to(dtype)
    return in_layout(x, memory) if x.ndim > 1 else in_layout(x[None], memory)[0]


def storage_of(tensor):
    """All that the tensor's memory holds, what lies between and around its elements too."""
    return tensor.detach().as_strided((tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)


def alone(p, layout, options):
    """(view of p, copy of it, an optimizer for that copy) of each matrix of a parameter."""
    if layout == "auxiliary":
        q = nn.Parameter(p.detach().clone())
        return [(p.detach(), q, Muon([{"params": [q], "use_muon": False}], **options))]
    factor = step_factor(p.shape, layout)
    options = options | {"lr": options["lr"] * factor, "weight_decay": options["weight_decay"] / factor}
    copies = [(view, nn.Parameter(view.clone())) for view in split(p.detach(), layout)]
    return [(view, q, Muon([q], **options)) for view, q in copies]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    cases=st.lists(parameters(), min_size=1, max_size=6),
    variants=st.lists(OPTIONS, min_size=1, max_size=3),
    max_bytes=st.sampled_from([1, 2**12, None]),
)
def test_as_if_each_matrix_were_alone(cases, variants, max_bytes):
    generator = torch.Generator().manual_seed(len(cases))
    params, groups, singles = [], {}, []
    for i, (shape, layout, memory, dtype, _) in enumerate(cases):
        variant = i % len(variants)
        options = {"lr": 0.1, "weight_decay": 0.2, "compute_dtype": torch.float32} | variants[variant]
        p = nn.Parameter(random(shape, dtype, memory, generator))
        params.append(p)
        own = {"use_muon": False} if layout == "auxiliary" else {"layout": layout}
        groups.setdefault((layout, variant), {"params": [], **options, **own})["params"].append(p)
        singles.append(alone(p, layout, options))
    optimizer = Muon(list(groups.values()), max_workspace_bytes=max_bytes)
    around = [storage_of(p).isnan() for p in params]
    start = [p.detach().clone() for p in params]
    for _ in range(2):
        for p, parts, (_, layout, memory, dtype, has_grad) in zip(params, singles, cases, strict=True):
            if has_grad:
                p.grad = random(p.shape, dtype, memory, generator)
                grads = [p.grad] if layout == "auxiliary" else split(p.grad, layout)
                for (_, q, single), grad in zip(parts, grads, strict=True):
                    q.grad = grad.clone()
                    single.step()
        before = [storage_of(p.grad).clone() if p.grad is not None else None for p in params]
        optimizer.step()
        for p, grad in zip(params, before, strict=True):
            assert p.grad is None if grad is None else torch.equal(storage_of(p.grad).nan_to_num(7), grad.nan_to_num(7))
    for p, first, nan, parts, (*_, dtype, has_grad) in zip(params, start, around, singles, cases, strict=True):
        assert (p in optimizer.state) == has_grad
        assert has_grad or torch.equal(p, first)
        assert torch.equal(storage_of(p).isnan(), nan)  # what lies between the elements was NaN and still is
        # Equal up to the order in which a product of other strides is summed, and a last bit of 16-bit parameters.
        tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
        for view, q, _ in parts:
            torch.testing.assert_close(view, q.detach(), rtol=tolerance, atol=tolerance)
