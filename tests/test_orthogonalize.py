"""The public function: shapes, dtypes, strides, hostile values, and what is refused."""

import pytest
import torch

from muon_kernels import backends, orthogonalize
from muon_kernels.coefficients import ORIGINAL, scalar_map
from muon_kernels.orthogonalize import METHODS, default_compute_dtype
from muon_kernels.squaring import squaring_map
from muon_kernels.testing import matrix_with_spectrum, polynomial_oracle

METHOD = pytest.mark.parametrize("method", METHODS)
EXACT = {"compute_dtype": torch.float64}


@METHOD
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (2, 3, 5, 9), (4, 9, 5), (1, 1, 1)])
def test_batches_equal_single_matrices(shape, method):
    g = torch.randn(shape, dtype=torch.float64)
    out = orthogonalize(g, method=method, **EXACT)
    assert out.shape == g.shape and out.dtype == g.dtype
    for single, expected in zip(g.reshape(-1, *shape[-2:]), out.reshape(-1, *shape[-2:]), strict=True):
        torch.testing.assert_close(orthogonalize(single, method=method, **EXACT), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", [(8, 8), (5, 9), (9, 5), (64, 16)])
def test_svd_is_the_polar_factor(shape):
    g = torch.randn(shape, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(g, full_matrices=False)
    torch.testing.assert_close(orthogonalize(g, method="svd"), u @ vh, rtol=1e-12, atol=1e-12)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        out = orthogonalize(g.to(dtype), method="svd", out_dtype=torch.float32)
        exact = orthogonalize(g.to(dtype).double(), method="svd").float()
        torch.testing.assert_close(out, exact, rtol=0, atol=1e-5)


@METHOD
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype, method):
    g = torch.randn(12, 30).to(dtype)
    out = orthogonalize(g, method=method)
    assert out.dtype == dtype
    assert torch.linalg.svdvals(out.double()).sub(0.9).abs().max() < 0.35
    assert orthogonalize(g, method=method, out_dtype=torch.float32).dtype == torch.float32


@METHOD
def test_strides_do_not_matter_and_the_input_is_left_alone(method):
    g = torch.randn(3, 10, 24)
    expected = orthogonalize(g, method=method)
    views = [
        torch.empty(3, 24, 10).mT,
        torch.empty(10, 3, 24).transpose(0, 1),
        torch.empty(3, 10, 48)[..., ::2],
        torch.empty(3, 24, 10).mT.requires_grad_(),
    ]
    for view in views:
        view.data.copy_(g)
        before = view.detach().clone()
        out = orthogonalize(view, method=method)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-2 if method != "svd" else 1e-5)
        assert torch.equal(view.detach(), before) and not out.requires_grad
    expanded = torch.randn(10, 24).expand(3, 10, 24)
    out = orthogonalize(expanded, method=method)
    torch.testing.assert_close(out[0], out[2])


def test_no_op_is_given_what_torch_negates_as_it_reads_it(monkeypatch):
    negated, select = [], backends.select

    def seen(op, device, lists):
        negated.extend(tensor.is_neg() for tensors in lists for tensor in tensors)
        return select(op, device, lists)

    monkeypatch.setattr(backends, "select", seen)
    g = torch.randn(2, 5, 9, dtype=torch.complex64).conj().imag
    assert torch.equal(orthogonalize(g), orthogonalize(g.resolve_neg()))
    assert negated and not any(negated)


@METHOD
def test_zero_matrix_gives_zero(method):
    for eps in (1e-7, 0.0):
        assert not orthogonalize(torch.zeros(2, 4, 6), method=method, eps=eps).any()


@pytest.mark.parametrize("method", ["standard", "gram"])
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_size_does_not_matter_without_eps(size, method):
    g = torch.randn(6, 14)
    out = orthogonalize(g * size, method=method, eps=0.0, compute_dtype=torch.float32)
    expected = polynomial_oracle((g * size).double(), (ORIGINAL,) * 5).float()
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_size_does_not_matter_for_svd():
    g = torch.randn(6, 14)
    for size in (1e-30, 1e30):
        torch.testing.assert_close(
            orthogonalize(g * size, method="svd"), orthogonalize(g, method="svd"), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("method", ["standard", "gram"])
def test_eps_is_a_clamp_on_the_norm(method):
    g = torch.randn(6, 14, dtype=torch.float64)
    tiny = 1e-10 * g / g.norm()
    out = orthogonalize(tiny, method=method, eps=1e-7, **EXACT)
    torch.testing.assert_close(out, polynomial_oracle(tiny, (ORIGINAL,) * 5, divisor=1e-7), rtol=1e-9, atol=0)
    same = orthogonalize(g, method=method, eps=1e-7, **EXACT)
    assert torch.equal(same, orthogonalize(g, method=method, eps=0.0, **EXACT))


@pytest.mark.parametrize("method", ["standard", "gram"])
def test_safety_factor_enlarges_the_norm(method):
    g = torch.randn(6, 14, dtype=torch.float64)
    out = orthogonalize(g, method=method, safety_factor=1.5, **EXACT)
    expected = polynomial_oracle(g, (ORIGINAL,) * 5, divisor=1.5 * g.norm())
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-12)


@METHOD
def test_null_directions_stay_null(method):
    g = matrix_with_spectrum(12, 20, torch.tensor([3.0, 2.0, 1.0] + [0.0] * 9))
    out = orthogonalize(g.float(), method=method, compute_dtype=torch.float32)
    values = torch.linalg.svdvals(out)
    assert values[:3].min() > 0.6 and values[3:].max() < 1e-3
    row_space = (torch.linalg.pinv(g, rtol=1e-6) @ g).float()
    assert (out - out @ row_space).norm() < 1e-3


@METHOD
@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1)])
def test_vectors_are_normalised(shape, method):
    g = torch.randn(shape, dtype=torch.float64)
    scale = {"svd": 1.0, "squaring": squaring_map(1.0)}.get(method, scalar_map(1.0, (ORIGINAL,) * 5))
    torch.testing.assert_close(orthogonalize(g, method=method, **EXACT), scale * g / g.norm(), rtol=1e-9, atol=1e-12)


@METHOD
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 3, 4), (2, 0, 0)])
def test_empty(shape, method):
    assert orthogonalize(torch.empty(shape), method=method).shape == shape


@METHOD
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bad_matrix_is_nan_and_its_neighbours_are_not(dtype, bad, method):
    g = torch.randn(4, 9, 17).to(dtype)
    clean = orthogonalize(g, method=method)
    g[1, 3, 5] = bad
    out = orthogonalize(g, method=method)
    assert out[1].isnan().all()
    for i in (0, 2, 3):
        assert torch.equal(out[i], clean[i])


def test_auto_takes_the_gram_chain_for_rectangles_unless_bfloat16():
    for shape, dtype, chain in (
        ((16, 64), torch.float32, "gram"),
        ((64, 16), torch.float32, "gram"),
        ((16, 20), torch.float32, "standard"),
        ((16, 64), torch.bfloat16, "standard"),
    ):
        g = torch.randn(shape)
        auto = orthogonalize(g, compute_dtype=dtype)
        assert torch.equal(auto, orthogonalize(g, method=chain, compute_dtype=dtype))


def test_default_compute_dtype():
    assert default_compute_dtype(torch.device("cuda")) == torch.float16
    assert default_compute_dtype(torch.device("cpu")) in (torch.bfloat16, torch.float32)


def test_compiles_without_a_graph_break():
    g = torch.randn(2, 8, 24)
    for method in ("standard", "gram", "squaring"):
        options = {"method": method, "compute_dtype": torch.float32}
        compiled = torch.compile(lambda g: orthogonalize(g, **options), fullgraph=True, backend="aot_eager")  # noqa: B023
        torch.testing.assert_close(compiled(g), orthogonalize(g, **options))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"G": torch.randn(3)}, ValueError, r"G must have at least two dimensions, got shape \[3\]"),
        ({"G": torch.ones(2, 2, dtype=torch.int32)}, TypeError, "G must be real floating point, got torch.int32"),
        (
            {"G": torch.ones(2, 2, dtype=torch.complex64)},
            TypeError,
            "G must be real floating point, got torch.complex64",
        ),
        ({"method": "newton"}, ValueError, "method must be one of auto, standard, gram, squaring, svd, got 'newton'"),
        ({"eps": -1.0}, ValueError, "eps must be >= 0, got -1.0"),
        ({"eps": float("nan")}, ValueError, "eps must be >= 0, got nan"),
        ({"safety_factor": 0.5}, ValueError, "safety_factor must be >= 1 and finite, got 0.5"),
        ({"compute_dtype": torch.int8}, ValueError, "compute_dtype must be one of .*, got torch.int8"),
        ({"ns_steps": -1}, ValueError, r"ns_steps must be in \[0, 100\), got -1"),
        ({"ns_coefficients": "nope"}, ValueError, "Unknown coefficients preset 'nope'"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        orthogonalize(**({"G": torch.ones(2, 2)} | options))
