"""Structured matrices against golden vectors and against dense algebra; inputs are integer formulas or random."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from muon_kernels import orthogonalize
from muon_kernels.matrices import split
from muon_kernels.scaling import RULES
from muon_kernels.structures import (
    SUPPORTED_STRUCTURES,
    LowerArrowDown,
    LowerArrowUp,
    Structure,
    UpperArrowDown,
    UpperArrowUp,
    block_diagonal,
    hierarchical,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "structures.json").read_text())
CLASSES: dict[str, type[Structure]] = SUPPORTED_STRUCTURES | {
    "block3diagonal": block_diagonal(3),
    "hierarchical3_2": hierarchical(3, 2),
    "triltopleftdiag": LowerArrowDown,
    "triutopleftdiag": UpperArrowDown,
    "trilbottomrightdiag": LowerArrowUp,
    "triubottomrightdiag": UpperArrowUp,
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-6}
# The golden file's names of stored tensors and ours.
OURS = {
    "mat": "matrix",
    "mat_diag": "entries",
    "blocks": "blocks",
    "last": "last",
    "lower_diags": "diagonals",
    "upper_diags": "diagonals",
    "A": "first.matrix",
    "B": "corner",
    "C": "second.first.entries",
    "D": "second.corner",
    "E": "second.second.matrix",
    "mat_diag.A": "first.entries",
    "mat.C": "second.matrix",
    "mat.A": "first.matrix",
    "mat_diag.C": "second.entries",
}


def formula(rows: int, cols: int, dtype: torch.dtype, entry: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    i, j = torch.arange(rows)[:, None], torch.arange(cols)[None]
    return entry(i, j).to(dtype)


def inputs(dim: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        "A": formula(dim, dim, dtype, lambda i, j: ((3 * (i + j) + 5 * i * j + i * i + j * j) % 17 - 8) / 16),
        "B": formula(dim, dim, dtype, lambda i, j: ((5 * (i + j) + 3 * i * j + 2 * (i * i + j * j)) % 13 - 6) / 8),
        "N": formula(dim, dim, dtype, lambda i, j: ((7 * i + 4 * j + 3 * i * j + 2 * i * i) % 19 - 9) / 16),
        "X": formula(dim, 3, dtype, lambda i, j: ((4 * i + 7 * j + i * j) % 11 - 5) / 8),
    }


def assert_golden(actual: Tensor | float, expected: Any, dtype: torch.dtype) -> None:
    actual = torch.as_tensor(actual).to(torch.float64)
    wanted = torch.tensor(expected, dtype=torch.float64).reshape(actual.shape)
    largest = float(wanted.abs().max()) if wanted.numel() else 0.0
    torch.testing.assert_close(actual, wanted, rtol=0, atol=TOLERANCE[dtype] * largest)


def random_symmetric(dim: int) -> Tensor:
    x = torch.randn(dim, dim, dtype=torch.float64)
    return x + x.mT


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['structure']}-{case['dim']}")
def test_golden(case: dict[str, Any], dtype: torch.dtype) -> None:
    cls, given = CLASSES[case["structure"]], inputs(case["dim"], dtype)
    a, b, n = (cls.from_dense(given[name]) for name in "ABN")
    x = given["X"]
    structured = {
        "params_A": a,
        "product_AB_params": a @ b,
        "inner_AtA_params": a.from_inner(),
        "inner_AtXXtA_params": a.from_inner(x),
    }
    dense = {
        "A": a,
        "B": b,
        "AB": a @ b,
        "A_plus_B": a + b,
        "A_diag_add_0.25": a + 0.25 * cls.eye(case["dim"], dtype),
        "A_minus_half_B": a - b * 0.5,
        "from_inner": a.from_inner(),
        "inner": a.from_inner(),
        "from_inner_X": a.from_inner(x),
        "inner_X": a.from_inner(x),
        "from_mat_inner_X": cls.from_mat_inner(x),
        "nonsymmetric_N": n,
    }
    expected = {
        "A_at_X": a @ x,
        "At_at_X": a.rmatmat(x),
        "average_trace_A": a.average_trace(),
        "frobenius_norm_A": a.frobenius_norm(),
        "infinity_vector_norm_A": a.infinity_vector_norm(),
    }
    for name, matrix in dense.items():
        whole = matrix.to_dense()
        expected |= {f"to_dense_{name}": whole}
        expected |= {f"to_dense_{name}_row_sums": whole.sum(1), f"to_dense_{name}_col_sums": whole.sum(0)}
    checked = 0
    for name, value in case.items():
        if name in expected:
            assert_golden(expected[name], value, dtype)
        elif name in structured:
            tensors = structured[name].named_tensors()
            for theirs, numbers in value.items():
                if theirs != "dense":  # a product that the file's source does not have as a structure
                    assert_golden(tensors[OURS[theirs]], numbers, dtype)
        else:
            continue
        checked += 1
    assert checked >= 13
    assert sum(t.numel() for t in a.named_tensors().values()) == case["num_params"]
    # The structure holds what it says: every stored number shows up in a matrix of ones.
    ones = cls.zeros(case["dim"])._combine(torch.ones_like).to_dense()
    assert int(ones.count_nonzero()) == case["nnz_support"]


@pytest.mark.parametrize("name", SUPPORTED_STRUCTURES)
def test_golden_shapes(name: str) -> None:
    for row in GOLDEN["shape_table"]:
        matrix = SUPPORTED_STRUCTURES[name].from_dense(inputs(row["dim"], torch.float64)["A"])
        shapes = {key: list(tensor.shape) for key, tensor in matrix.named_tensors().items()}
        assert shapes == {OURS[key]: shape for key, shape in row[name]["shapes"].items()}
        assert sum(tensor.numel() for tensor in matrix.named_tensors().values()) == row[name]["num_params"]
        assert_golden(matrix.frobenius_norm(), row[name]["frobenius_norm_A"], torch.float64)


@pytest.mark.parametrize("dim", [1, 5, 33, 64])
@pytest.mark.parametrize("name", CLASSES)
def test_algebra_is_that_of_dense_matrices(name: str, dim: int) -> None:
    # Products of three are not symmetric in any block, so a forgotten transpose shows.
    cls = CLASSES[name]
    a, b = ((cls.from_dense(random_symmetric(dim)) @ cls.from_dense(random_symmetric(dim))) for _ in range(2))
    da, db, x = a.to_dense(), b.to_dense(), torch.randn(dim, 4, dtype=torch.float64)
    close = {"rtol": 1e-10, "atol": 1e-10 * dim}
    torch.testing.assert_close((a @ b).to_dense(), da @ db, **close)
    torch.testing.assert_close((a + b).to_dense(), da + db, **close)
    torch.testing.assert_close((a - 3 * b).to_dense(), da - 3 * db, **close)
    torch.testing.assert_close(a @ x, da @ x, **close)
    torch.testing.assert_close(a.rmatmat(x), da.mT @ x, **close)
    torch.testing.assert_close(a.from_inner().to_dense(), cls.from_dense(da.mT @ da).to_dense(), **close)
    torch.testing.assert_close(a.from_inner(x).to_dense(), cls.from_dense(da.mT @ x @ x.mT @ da).to_dense(), **close)
    torch.testing.assert_close(a.frobenius_norm(), torch.linalg.vector_norm(da), **close)
    torch.testing.assert_close(a.infinity_vector_norm(), da.abs().max(), **close)
    torch.testing.assert_close(a.average_trace(), da.trace() / dim, **close)
    assert a.dim == dim
    torch.testing.assert_close(cls.eye(dim).to_dense(), torch.eye(dim))
    assert not cls.zeros(dim).to_dense().any()


@pytest.mark.parametrize("name", CLASSES)
def test_one_side_carries_both(name: str) -> None:
    """Half the sum with its transpose is the symmetric matrix, on the entries that the structure holds."""
    matrix = random_symmetric(33)
    kept = CLASSES[name].from_dense(matrix).to_dense()
    symmetric = (kept + kept.mT) / 2
    if "toeplitz" in name:
        means = torch.stack([matrix.diagonal(k).mean() for k in range(33)])
        matrix = means[(torch.arange(33)[:, None] - torch.arange(33)).abs()]
    torch.testing.assert_close(symmetric, torch.where(symmetric != 0, matrix, 0.0))


@pytest.mark.parametrize("name", CLASSES)
def test_shares_no_memory_with_its_source(name: str) -> None:
    matrix = random_symmetric(40)
    structured = CLASSES[name].from_dense(matrix)
    before = structured.to_dense()
    matrix.zero_()
    structured.to_dense().zero_()
    assert torch.equal(structured.to_dense(), before) and before.any()


@pytest.mark.gpu
@pytest.mark.parametrize("name", CLASSES)
def test_gpu_agrees_with_the_cpu(name: str) -> None:
    cls, matrix, x = CLASSES[name], random_symmetric(40), torch.randn(40, 3, dtype=torch.float64)
    here, there = cls.from_dense(matrix), cls.from_dense(matrix.cuda())
    torch.testing.assert_close(
        (there @ there).from_inner(x.cuda()).to_dense().cpu(), (here @ here).from_inner(x).to_dense()
    )
    assert cls.eye(5, device=torch.device("cuda")).to_dense().is_cuda


def test_errors_name_what_is_wrong() -> None:
    dense = SUPPORTED_STRUCTURES["dense"]
    with pytest.raises(ValueError, match=r"square, got shape \[3, 4\]"):
        dense.from_dense(torch.zeros(3, 4))
    with pytest.raises(TypeError, match=r"floating point, got torch\.int64"):
        dense.from_dense(torch.zeros(3, 3, dtype=torch.int64))
    a = block_diagonal(3).eye(7)
    with pytest.raises(TypeError, match="Block3Diagonal needs an operand of its own class, got Block2Diagonal"):
        a @ block_diagonal(2).eye(7)
    with pytest.raises(ValueError, match="7 x 7, got 6 x 6"):
        a + block_diagonal(3).eye(6)
    with pytest.raises(ValueError, match=r"\[7, k\], got \[6, 2\]"):
        a.rmatmat(torch.zeros(6, 2))
    with pytest.raises(ValueError, match=r"\[7, k\], got \[7\]"):
        a @ torch.zeros(7)
    with pytest.raises(ValueError, match="size must be >= 1, got 0"):
        block_diagonal(0)
    with pytest.raises(ValueError, match=r"got -1 and 2"):
        hierarchical(-1, 2)


@pytest.mark.parametrize("case", GOLDEN["structured_orthogonalisation"]["cases"][:4], ids=lambda c: str(c["shape"]))
def test_block_structures_are_layouts_of_the_orthogonaliser(case: dict[str, Any]) -> None:
    """Row blocks, grids and qkv: the same views that Muon steps, one Newton-Schulz chain each."""
    G = torch.tensor(case["G"], dtype=torch.float64)
    rows, cols = G.shape
    layouts: dict[str, str | None] = {}
    for name in case:
        if name.startswith("row_blocks_"):
            layouts[name] = f"rows:{rows // int(name[11:])}"
        elif name.startswith("grid_"):  # the file names the size of a block, a layout their number
            height, width = map(int, name[5:].split("x"))
            layouts[name] = f"grid:{rows // height}x{cols // width}"
    layouts |= {"dense": None} | ({"qkv_split_3x": "qkv"} if rows == 3 * cols else {})
    assert layouts.keys() == case.keys() - {"shape", "G", "singular_values"}
    for name, layout in layouts.items():
        for key, options in (("polar", {"method": "svd"}), ("ns5_original", {"method": "standard", "eps": 0.0})):
            result = torch.empty_like(G)
            for view, block in zip(split(result, layout), split(G, layout), strict=True):
                view.copy_(orthogonalize(block, compute_dtype=torch.float64, **options))
            assert_golden(result, case[name][key], torch.float64)
    assert_golden(torch.linalg.svdvals(G), case["singular_values"], torch.float64)
    if "qkv_split_3x" in case:  # the notebook's scale of a fused projection is that of one of its matrices
        assert RULES["max_dim"](split(G, "qkv")[0].shape) == case["qkv_split_3x"]["scale_source000"]


def test_diagonal_structures_of_the_orthogonaliser() -> None:
    """The polar factor of a diagonal is its signs, that of a block diagonal the polar factor of each block."""
    case = GOLDEN["structured_orthogonalisation"]["cases"][4]
    A = inputs(7, torch.float64)["A"]
    signs = orthogonalize(A.diagonal()[:, None, None], method="svd", compute_dtype=torch.float64)
    assert_golden(signs.flatten(), case["diagonal"]["polar_diag"], torch.float64)
    blocks = [orthogonalize(A[i : i + 3, i : i + 3], method="svd", compute_dtype=torch.float64) for i in (0, 3, 6)]
    assert_golden(torch.block_diag(*blocks), case["block3diagonal"]["polar"], torch.float64)
