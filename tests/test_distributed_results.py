"""Results that products write where they travel from: which pieces can be, and what arrives there."""

from functools import partial

import pytest
import torch
from distributed_jobs import LIES, written_by_products

from muon_kernels.distributed.exchange import Segment
from muon_kernels.distributed.layout import Piece
from muon_kernels.distributed.results import MINIMUM_SIDE, multiply, targets
from muon_kernels.variants import NorMuon

SIDE = MINIMUM_SIDE


def segment(number, offset, at=(0, 0), shape=(SIDE, SIDE)):
    return Segment(number, Piece((), 0, 0, *at, *shape), offset)


def in_buffer(*segments):
    by_number: dict[int, list[Segment]] = {}
    for each in segments:
        by_number.setdefault(each.number, []).append(each)
    return torch.full((16 * SIDE * SIDE,), torch.nan, dtype=torch.float16), by_number


def test_every_piece_is_that_of_the_whole_product():
    """Two matrices whose upper halves are sent and whose lower ones are kept."""
    sent, kept = (
        in_buffer(*(segment(number, offset * SIDE * SIDE, at=(row, 0)) for number, offset in ((3, first), (5, second))))
        for row, first, second in ((0, 1, 2), (SIDE, 0, 4))
    )
    into = targets([(2, 2 * SIDE, SIDE)], [3, 5], [sent, kept])
    assert into is not None and [target.out.shape for target in into] == [(2, SIDE, SIDE)] * 2
    left, right = torch.randn(2, 2 * SIDE, 8).half(), torch.randn(2, 8, SIDE).half()
    multiply([left], [right], into)
    whole = left.double() @ right.double()
    for (buffer, by_number), rows in ((sent, slice(0, SIDE)), (kept, slice(SIDE, None))):
        for matrix, number in zip(whole, (3, 5), strict=True):
            (own,) = by_number[number]
            found = buffer[own.offset : own.stop].view(SIDE, SIDE).double()
            torch.testing.assert_close(found, matrix[rows], atol=0.02, rtol=2e-3)
        assert int(buffer.isnan().sum()) == len(buffer) - 2 * SIDE * SIDE  # nothing else is written


def test_groups_of_other_shapes_have_targets_of_their_own():
    tall, wide = segment(0, 0, shape=(2 * SIDE, SIDE)), segment(1, 2 * SIDE * SIDE, shape=(SIDE, 2 * SIDE))
    into = targets([(1, 2 * SIDE, SIDE), (1, SIDE, 2 * SIDE)], [0, 1], [in_buffer(tall, wide)])
    assert into is not None
    assert [(group, tuple(out.shape)) for group, _, out in into] == [(0, (1, 2 * SIDE, SIDE)), (1, (1, SIDE, 2 * SIDE))]


@pytest.mark.parametrize(
    "segments",
    [
        [segment(0, 4)],
        [segment(0, 0), segment(1, SIDE * SIDE + 4)],
        [segment(0, 0, shape=(SIDE, SIDE + 4))],
        [segment(0, 0, at=(0, 4))],
        [segment(0, 0, shape=(SIDE - 1, SIDE))],
        [segment(0, 0, shape=(SIDE, SIDE - 8))],
        [segment(0, 0), segment(1, 2 * SIDE * SIDE), segment(2, 3 * SIDE * SIDE)],
        [segment(0, SIDE * SIDE), segment(1, 0)],
        [segment(0, 0), segment(1, SIDE * SIDE, at=(SIDE, 0))],
        [segment(0, 0), segment(0, SIDE * SIDE, at=(SIDE, 0)), segment(1, 2 * SIDE * SIDE)],
    ],
    ids=[
        "start",
        "distance",
        "columns",
        "first column",
        "low",
        "narrow",
        "uneven",
        "backwards",
        "other rows",
        "other number",
    ],
)
def test_what_no_product_can_write(segments):
    numbers = sorted({s.number for s in segments})
    assert targets([(len(numbers), 2 * SIDE, 2 * SIDE)], numbers, [in_buffer(*segments)]) is None


@pytest.mark.parametrize("sides", [(2 * SIDE + 4, 4 * SIDE), (4 * SIDE, 2 * SIDE + 4)], ids=str)
def test_factors_whose_rows_end_off_the_alignment(sides):
    """Hopper's products read no such factors, though a piece may lie well."""
    one = in_buffer(segment(0, 0))
    assert targets([(1, *sides)], [0], [one]) is None
    assert targets([(1, *(side // 8 * 8 for side in sides))], [0], [one])


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(
    "kind", ["FSDP", "FSDP, columns", "FSDP x TP, column-wise", "HSDP", "DDP", "DDP, state in rows"]
)
def test_steps_have_the_bits_of_one_process(ranks, kind, world):
    assert all(count > 0 for count in ranks(world).run(written_by_products, LIES[kind]))


def test_chains_that_do_not_fit_into_the_workspace_together(ranks):
    """Though their pieces travel in one wave, as one matrix alone is larger than the workspace."""
    job = partial(written_by_products, LIES["FSDP"])
    together, apart = (ranks(2).run(partial(job, max_workspace_bytes=size)) for size in (2**20, 2**12))
    assert all(a > b for a, b in zip(apart, together, strict=True))


def test_what_a_normaliser_changes_is_not_written_by_products(ranks):
    assert ranks(2).run(partial(written_by_products, LIES["FSDP"], normalizer=NorMuon())) == [0, 0]
