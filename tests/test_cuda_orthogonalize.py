"""`orthogonalize` in one call on a GPU: the bits of its ops one by one."""

import pytest
import torch

from muon_kernels import dispatch, orthogonalize

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("on_hopper", "on_cuda_backend")]

SHAPES = [(768, 3072), (3, 200, 333), (2, 1024, 256), (256, 128, 128), (1, 7), (9, 1), (1100, 1030), (2, 3, 64, 40)]
"""Wide, tall, many, of odd sides, single rows and columns, and one whose norm takes more than a cluster."""


@pytest.fixture
def calls(monkeypatch):
    """Whether each call of `orthogonalize` was one of the backend. Memory that it finds holds NaN."""
    whole, taken = dispatch.whole, []

    def spy(name, lists, request=None):
        run = whole(name, lists, request)

        def spied(*args, **kwargs):
            taken.append(all(run(*args, **kwargs)))
            return taken[-1:]

        return run and spied

    monkeypatch.setattr(dispatch, "whole", spy)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield taken
    torch.use_deterministic_algorithms(False)


def by_ops(x, monkeypatch, **options):
    with monkeypatch.context() as patched:
        patched.setattr(dispatch, "whole", lambda name, lists, request=None: None)
        return orthogonalize(x, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"method": "squaring"}, {"method": "standard"}, {"ns_steps": 2}], ids=str)
def test_the_bits_of_the_ops(dtype, options, calls, monkeypatch):
    out = {"out_dtype": torch.float32} if dtype == torch.float16 else {}
    for shape in SHAPES:
        x = torch.randn(shape, device="cuda").to(dtype)
        for _ in range(4):  # chains are recorded, then replayed
            actual = orthogonalize(x, **options, **out)
        assert actual.isfinite().all()
        assert torch.equal(actual, by_ops(x, monkeypatch, **options, **out)), shape
    assert all(calls) and len(calls) == 4 * len(SHAPES)


def test_any_memory_order(calls, monkeypatch):
    base = torch.randn(3, 300, 2 * 500 + 1, device="cuda")
    for x in (base[:, :, 1::2], base.mT, base[:, ::3, 7:], base[1, :64, :64].expand(5, 64, 64), -base._neg_view()):
        assert torch.equal(orthogonalize(x), by_ops(x, monkeypatch))
    assert calls == [True] * 5


def test_a_matrix_that_is_not_finite_is_alone_in_it(calls):
    x = torch.randn(5, 300, 200, device="cuda")
    x[1, 3, 4] = torch.inf
    x[3, 0, 0] = torch.nan
    x[4] = 0
    out = orthogonalize(x)
    assert out[[1, 3]].isnan().all() and out[[0, 2]].isfinite().all() and (out[4] == 0).all()
    assert torch.equal(out[2], orthogonalize(x[2]))
    assert calls == [True, True]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_huge_and_tiny_matrices(scale, calls):
    x = torch.randn(300, 500, device="cuda")
    torch.testing.assert_close(orthogonalize(x * scale, eps=0.0), orthogonalize(x, eps=0.0), rtol=0, atol=2e-3)
    assert calls == [True, True]


def test_in_a_graph_and_on_another_stream(calls):
    x = torch.randn(2, 512, 1024, device="cuda", dtype=torch.bfloat16)
    expected = orthogonalize(x)
    other = torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):
        assert torch.equal(orthogonalize(x), expected)
    graph, changed = torch.cuda.CUDAGraph(), torch.empty_like(x)
    with torch.cuda.graph(graph):
        out = orthogonalize(changed)
    changed.copy_(x)
    graph.replay()
    assert torch.equal(out, expected)
    assert calls == [True] * 3


def test_what_the_last_product_cannot_write_or_no_product_writes_goes_op_by_op(calls, monkeypatch):
    x = torch.randn(2, 256, 512, device="cuda")
    for options in ({"out_dtype": torch.float16}, {"ns_steps": 0}, {"compute_dtype": torch.bfloat16}):
        assert torch.equal(orthogonalize(x, **options), by_ops(x, monkeypatch, **options))
    assert calls == [False]


def test_no_memory_is_kept(calls):
    x = torch.randn(4, 512, 512, device="cuda")
    for _ in range(4):
        orthogonalize(x)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    out = orthogonalize(x)
    assert torch.cuda.memory_allocated() - before == out.numel() * out.element_size()
