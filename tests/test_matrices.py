"""A parameter as matrices: every layout covers it once, in views, and steps like the matrices alone."""

import math

import pytest
import torch
from optimizers import set_grads
from torch import nn

from muon_kernels import Muon
from muon_kernels.matrices import freeze_layout, split

CASES = [
    (None, (6, 10), [(6, 10)]),
    ("flatten", (8, 4, 3, 3), [(8, 36)]),
    ("flatten", (8, 4), [(8, 4)]),
    ("conv_batched", (8, 4, 3, 2), [(8, 4)] * 6),
    ("conv_batched", (8, 4, 5), [(8, 4)] * 5),
    ("transposed", (8, 6), [(6, 8)]),
    ("batch", (3, 6, 5), [(6, 5)] * 3),
    ("batch", (2, 3, 6, 5), [(6, 5)] * 6),
    ("rows:4", (12, 5), [(3, 5)] * 4),
    ("cols:5", (4, 20), [(4, 4)] * 5),
    ("grid:2x3", (8, 9), [(4, 3)] * 6),
    ("qkv", (24, 8), [(8, 8)] * 3),
    ("qkv", (12, 8), [(4, 8)] * 3),
    ("auto_qkv", (24, 8), [(8, 8)] * 3),
    ("auto_qkv", (12, 8), [(12, 8)]),
    ((4, 2, 2), (8, 6), [(4, 6), (2, 6), (2, 6)]),
    (lambda t: [t[:, :3], t[:, 3:]], (4, 8), [(4, 3), (4, 5)]),
]
IDS = [f"{getattr(layout, '__name__', layout)}-{'x'.join(map(str, shape))}" for layout, shape, _ in CASES]
CASE = pytest.mark.parametrize(("layout", "shape", "matrices"), CASES, ids=IDS)


@CASE
def test_every_element_is_in_one_matrix(layout, shape, matrices):
    tensor = torch.zeros(shape)
    views = split(tensor, layout)
    assert [tuple(v.shape) for v in views] == matrices
    for view in views:
        view += 1
    assert tensor.eq(1).all()


@CASE
@pytest.mark.parametrize("rule", ["original", "match_rms_adamw"])
def test_a_step_equals_stepping_each_matrix_alone(layout, shape, matrices, rule):
    options = {"lr": 0.1, "weight_decay": 0.2, "adjust_lr_fn": rule, "compute_dtype": torch.float32}
    generator = torch.Generator().manual_seed(3)
    whole = nn.Parameter(torch.randn(shape, generator=generator))
    parts = [nn.Parameter(v.detach().clone()) for v in split(whole, layout)]
    optimizer = Muon([whole], layout=layout, **options)
    factor = math.prod(shape[2:]) ** -0.5 if layout == "conv_batched" else 1.0
    alone = Muon(parts, **options | {"lr": 0.1 * factor, "weight_decay": 0.2 / factor})
    for step in range(3):
        set_grads([whole], step)
        for part, grad in zip(parts, split(whole.grad, layout), strict=True):
            part.grad = grad.clone()
        before = whole.grad.clone()
        optimizer.step()
        alone.step()
        assert torch.equal(whole.grad, before)
    for part, view in zip(parts, split(whole.detach(), layout), strict=True):
        torch.testing.assert_close(view, part.detach(), rtol=1e-5, atol=1e-6)
    assert optimizer.state[whole]["momentum_buffer"].shape == shape


@pytest.mark.parametrize("grad_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("layout", ["flatten", "conv_batched"])
def test_channels_last(layout, grad_format):
    """Convolutions in either memory format move alike, whatever the format of the gradient."""
    start = torch.randn(8, 4, 3, 3)
    plain = nn.Parameter(start.clone())
    last = nn.Parameter(start.clone().to(memory_format=torch.channels_last))
    optimizers = [Muon([p], lr=0.1, layout=layout, compute_dtype=torch.float32) for p in (plain, last)]
    for step in range(3):
        grad = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(step))
        for p, optimizer in zip((plain, last), optimizers, strict=True):
            p.grad = grad.clone().to(memory_format=grad_format)
            optimizer.step()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last.detach(), plain.detach(), rtol=1e-4, atol=1e-5)


def test_a_momentum_of_another_memory_format_is_loaded():
    start = torch.randn(8, 4, 3, 3)
    params = [nn.Parameter(start.clone().to(memory_format=f)) for f in (torch.contiguous_format, torch.channels_last)]
    source, target = (Muon([p], lr=0.1, layout="flatten", compute_dtype=torch.float32) for p in params)
    set_grads(params[:1], 0)
    source.step()
    with torch.no_grad():
        params[1].copy_(params[0])
    target.load_state_dict(source.state_dict())
    for p, optimizer in zip(params, (source, target), strict=True):
        set_grads([p], 1)
        optimizer.step()
    torch.testing.assert_close(params[1].detach(), params[0].detach(), rtol=1e-4, atol=1e-5)


def test_the_layout_survives_a_checkpoint(tmp_path):
    p, q = (nn.Parameter(torch.ones(8, 6)) for _ in range(2))
    optimizer = Muon([p], layout=[4, 2, 2])
    set_grads([p, q], 0)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    other = Muon([q])
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.param_groups[0]["layout"] == (4, 2, 2)


def test_groups_have_layouts_of_their_own():
    conv, dense, bias = (
        nn.Parameter(torch.randn(8, 4, 3, 3)),
        nn.Parameter(torch.randn(6, 4)),
        nn.Parameter(torch.zeros(8)),
    )
    optimizer = Muon(
        [{"params": [conv], "layout": "flatten"}, {"params": [dense]}, {"params": [bias], "use_muon": False}], lr=0.1
    )
    set_grads([conv, dense, bias], 0)
    optimizer.step()
    table = optimizer.explain().splitlines()
    assert [line.split() for line in table] == [
        ["parameter", "shape", "algorithm", "matrices", "lr", "scale"],
        ["0", "8x4x3x3", "muon", "1", "x", "8x36", "1"],
        ["1", "6x4", "muon", "1", "x", "6x4", "1.225"],
        ["2", "8", "adamw", "1"],
    ]


def test_explain_uses_names():
    model = nn.Linear(4, 6, bias=False)
    assert "weight  " in Muon(model.named_parameters()).explain()


@pytest.mark.parametrize(
    ("layout", "error", "message"),
    [
        ("flat", ValueError, "layout must be None, a sequence, a function or one of flatten, .*got 'flat'"),
        ("rows:0", ValueError, "got 'rows:0'"),
        ("rows:k", ValueError, "got 'rows:k'"),
        ("rows:2x3", ValueError, "got 'rows:2x3'"),
        ("grid:2", ValueError, "got 'grid:2'"),
        (3, TypeError, "layout must be None, a name, a sequence of row counts or a function, got 3"),
        ([1.5], TypeError, r"got \[1.5\]"),
        ([], ValueError, r"positive row counts, got \[\]"),
        ([4, 0], ValueError, r"positive row counts, got \[4, 0\]"),
    ],
)
def test_bad_layouts(layout, error, message):
    with pytest.raises(error, match=message):
        freeze_layout(layout)
    with pytest.raises(error, match=message):
        Muon([nn.Parameter(torch.zeros(8, 6))], layout=layout)


@pytest.mark.parametrize(
    ("layout", "shape", "message"),
    [
        ("flatten", (5,), r"layout 'flatten' needs at least two dimensions, got a parameter of shape \[5\]"),
        ("batch", (5,), r"layout 'batch' needs at least two dimensions, got a parameter of shape \[5\]"),
        ("qkv", (2, 3, 4), r"layout 'qkv' needs two dimensions, got a parameter of shape \[2, 3, 4\]"),
        ("qkv", (8, 6), r"layout 'qkv' needs rows divisible by 3 and columns by 1, got a parameter of shape \[8, 6\]"),
        ("grid:2x4", (8, 6), r"layout 'grid:2x4' needs rows divisible by 2 and columns by 4"),
        ((4, 3), (8, 6), r"layout \(4, 3\) needs 7 rows, got a parameter of shape \[8, 6\]"),
        (lambda t: [t.clone()], (8, 6), r"needs 2-D views of the tensor, got \[8, 6\] at index 0"),
        (lambda t: [t[0]], (8, 6), r"needs 2-D views of the tensor, got \[6\] at index 0"),
        (lambda t: [t[:4]], (8, 6), "needs views that cover the tensor once"),
        (None, (2, 3, 4), "only supports 2D parameters"),
    ],
)
def test_parameters_that_do_not_fit(layout, shape, message):
    good = nn.Parameter(torch.zeros(24, 12))
    optimizer = Muon([good])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(shape))], "layout": layout})
    assert len(optimizer.param_groups) == 1
