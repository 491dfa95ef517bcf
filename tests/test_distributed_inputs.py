"""Matrices that an owner reads from their pieces: what chains make of them, and when that is done."""

import pytest
import torch
from distributed_jobs import LIES
from distributed_owner_jobs import from_pieces

from muon_kernels.coefficients import resolve_coefficients
from muon_kernels.distributed import inputs as module
from muon_kernels.distributed.exchange import Segment
from muon_kernels.distributed.inputs import inputs, reads_pieces
from muon_kernels.distributed.layout import Piece
from muon_kernels.distributed.views import LARGE_PIECE
from muon_kernels.orthogonalize import Orthogonalizer
from muon_kernels.variants import NorMuon

GROUPS = [(2, 12, 7), (3, 9, 20)]
CUTS = [((5, 11), ()), ((), (1,)), ((4,), (3, 12)), ((), ()), ((8,), (19,))]
"""Of each matrix, where its rows and its columns are cut: uneven pieces, and another number of them in each."""


def scattered(matrices):
    """The matrices' pieces in one buffer, the last one first, with gaps; and its segments."""
    total = sum(matrix.numel() for matrix in matrices)
    buffer = matrices[0].new_full((2 * total,), torch.nan)
    end, arrived = len(buffer), []
    for number, (matrix, cuts) in enumerate(zip(matrices, CUTS, strict=True)):
        segments = []
        ranges = [zip((0, *own), (*own, size), strict=True) for own, size in zip(cuts, matrix.shape, strict=True)]
        columns = list(ranges[1])
        for top, bottom in ranges[0]:
            for first, last in columns:
                piece = Piece((), 0, 0, top, first, bottom - top, last - first)
                end -= piece.rows * piece.cols + 1
                segment = Segment(number, piece, end)
                buffer[end : segment.stop] = matrix[top:bottom, first:last].flatten()
                segments.append(segment)
        arrived.append(segments)
    return buffer, arrived


def random_matrices(dtype):
    return [(10.0**i * torch.randn(shape)).to(dtype) for i, shape in enumerate([(12, 7)] * 2 + [(9, 20)] * 3)]


def orthogonalized(matrices, *, steps=5, compute=torch.float64, **options):
    """What chains make of pieces, one result a matrix; `options` of the Orthogonalizer."""
    rows = resolve_coefficients("original", steps)
    device = matrices[0].device
    defaults = {"method": "auto", "device": device, "compute_dtype": compute, "safety_factor": 1.25}
    chain = Orthogonalizer(GROUPS, rows, **defaults | options)
    buffer, arrived = scattered(matrices)
    chosen = inputs(chain, buffer, arrived)
    if not chain.factored:
        return [matrix for batch in chain.run(*chosen) for matrix in batch]
    return [matrix for a, b in zip(*chain.factors(*chosen), strict=True) for matrix in a.double() @ b.double()]


@pytest.fixture
def in_pieces(monkeypatch):
    monkeypatch.setattr(module, "reads_pieces", lambda chain, pieces: True)


def test_every_piece_is_divided_by_the_norm_of_its_matrix(in_pieces):
    """Also where another matrix is zero and one has a NaN."""
    matrices = random_matrices(torch.float64)
    matrices[1].zero_()
    matrices[2][7, 15] = torch.nan
    for number, (matrix, found) in enumerate(zip(matrices, orthogonalized(matrices, steps=0), strict=True)):
        expected = matrix / (1.25 * torch.linalg.matrix_norm(matrix)).clamp(min=1e-7)
        assert bool(expected.isnan().all()) == (number == 2)
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "gram"},
        {"method": "squaring"},
        {"preconditioning": "aol"},
        {"compute": torch.float16, "factored": True},
        {"compute": torch.float16, "factored": True, "preconditioning": "aol"},
    ],
    ids=lambda options: ", ".join(map(str, options.values())),
)
def test_chains_of_pieces_are_those_of_assembled_matrices(monkeypatch, options):
    half = options.get("compute") == torch.float16
    matrices = random_matrices(torch.bfloat16 if half else torch.float64)
    assembled = orthogonalized(matrices, **options)
    monkeypatch.setattr(module, "reads_pieces", lambda chain, pieces: True)
    monkeypatch.setattr(module.views, "copy", None)
    for found, expected in zip(orthogonalized(matrices, **options), assembled, strict=True):
        assert expected.isfinite().all() and expected.any()
        torch.testing.assert_close(found, expected, rtol=0, atol=0 if half else 1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("preconditioning", ["frobenius", "aol"])
def test_chains_of_pieces_on_a_device(monkeypatch, preconditioning):
    matrices = [matrix.cuda() for matrix in random_matrices(torch.bfloat16)]
    options = {"compute": torch.float16, "factored": True, "preconditioning": preconditioning}
    found = []
    for choice in (False, True):
        monkeypatch.setattr(module, "reads_pieces", lambda chain, pieces, choice=choice: choice)
        found.append(orthogonalized(matrices, **options))
    for assembled, in_place in zip(*found, strict=True):
        assert assembled.isfinite().all() and torch.equal(assembled, in_place)


@pytest.mark.parametrize("kind", LIES)
def test_steps_from_pieces(ranks, kind):
    assert sum(ranks(4).run(from_pieces, LIES[kind], {"compute_dtype": torch.float16})) >= 2 * 9


@pytest.mark.parametrize(
    "options",
    [
        {"compute_dtype": torch.bfloat16, "max_workspace_bytes": 4096},
        {"preconditioning": "aol", "compute_dtype": torch.float16, "dtype": torch.bfloat16},
        {"normalizer": NorMuon(), "compute_dtype": torch.float16},
    ],
    ids=["in waves", "AOL", "NorMuon"],
)
def test_steps_from_pieces_with_options(ranks, options):
    assert sum(ranks(2).run(from_pieces, LIES["FSDP"], options)) >= 2 * 9


def test_what_is_read_from_pieces():
    """Large pieces in the mean, off the CPU, for chains that normalise."""

    def asked(groups, pieces, device="meta", method="auto"):
        options = {"method": method, "compute_dtype": torch.float32, "device": torch.device(device)}
        return reads_pieces(Orthogonalizer(groups, (), **options), [torch.empty(1, device=device)] * pieces)

    one, smaller = (1, 1024, LARGE_PIECE // 1024), (1, 1023, LARGE_PIECE // 1024)
    larger = (1, 1025, LARGE_PIECE // 1024)
    assert asked([one], 1) and asked([larger, smaller], 2) and asked([(2, *one[1:])], 2)
    assert not asked([smaller], 1) and not asked([one, smaller], 2) and not asked([one], 2)
    assert not asked([one], 1, device="cpu") and not asked([one], 1, method="svd")
