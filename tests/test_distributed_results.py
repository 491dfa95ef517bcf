"""Results that products write where they travel from, or step parameters with: which pieces can be, what becomes of
them."""

from functools import partial

import pytest
import torch
from distributed_jobs import EXPERT_LIES, LIES
from distributed_owner_jobs import by_products, by_products_if_at_all

from muon_kernels import dispatch, ops
from muon_kernels.backends import cuda_gemm_apply, cuda_products
from muon_kernels.coefficients import resolve_coefficients
from muon_kernels.distributed.exchange import Segment
from muon_kernels.distributed.layout import Piece
from muon_kernels.distributed.results import MINIMUM_SIDE, multiply, multiply_and_apply, targets
from muon_kernels.orthogonalize import Orthogonalizer
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
    assert into is not None and [[target.out.shape for target in own] for own in into] == [[(2, SIDE, SIDE)]] * 2
    left, right = torch.randn(2, 2 * SIDE, 8).half(), torch.randn(2, 8, SIDE).half()
    multiply([left], [right], [*into[0], *into[1]])
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
    assert [(group, tuple(out.shape)) for group, _, out in into[0]] == [
        (0, (1, 2 * SIDE, SIDE)),
        (1, (1, SIDE, 2 * SIDE)),
    ]


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("skipped", [False, True], ids=["taken", "skipped"])
def test_a_step_by_pieces_has_the_bits_of_products_and_apply(dtype, skipped):
    """Of a tall matrix the lower rows, of two wide ones the last columns; parameters are parts of larger tensors."""
    groups = [(1, 2 * SIDE, SIDE), (2, SIDE, 2 * SIDE)]
    rows = segment(0, 0, at=(SIDE, 0))
    cols = [segment(number, number * SIDE * SIDE, at=(0, SIDE)) for number in (1, 2)]
    into = targets(groups, [0, 1, 2], [in_buffer(rows, *cols)])
    assert into is not None
    left, right = (
        [torch.randn(n, *sides).half() / 8 for n, *sides in groups_of]
        for groups_of in ([(1, 2 * SIDE, 64), (2, SIDE, 64)], [(1, 64, SIDE), (2, 64, 2 * SIDE)])
    )
    whole = torch.randn(3, SIDE + 3, SIDE + 5).to(dtype)
    stepped, expected = (list(x[:, 3:, 5:].unbind()) for x in (whole.clone(), whole.clone()))
    scales = [0.5, 1.5, 2.5]
    found_inf = torch.tensor(float(skipped))
    options = {"lr": torch.tensor(0.1, dtype=torch.float64), "weight_decay": 0.3, "scales": scales}
    multiply_and_apply(left, right, into[0], stepped, **options, found_inf=found_inf)
    multiply(left, right, into[0])
    ops.apply(expected, [matrix for _, _, out in into[0] for matrix in out], **options, found_inf=found_inf)
    before = whole[:, 3:, 5:].unbind()
    for step, wanted, old in zip(stepped, expected, before, strict=True):
        assert torch.equal(step, wanted) and torch.equal(step, old) == skipped


@pytest.mark.parametrize("method", ["standard", "gram", "squaring"])
def test_operands_are_what_the_cuda_kernels_read(method, monkeypatch):
    """Whatever piece a product can write: its rows and columns lie as Hopper's copy engine wants them."""
    groups = [(2, 2 * SIDE, SIDE), (1, SIDE, 2 * SIDE + 8)]
    chain = Orthogonalizer(
        groups,
        resolve_coefficients("original", 5),
        method=method,
        compute_dtype=torch.float16,
        device=torch.device("cpu"),
        factored=True,
    )
    rows = [segment(n, n * SIDE * SIDE, at=(SIDE - 3, 0)) for n in (0, 1)]
    cols = segment(2, 2 * SIDE * SIDE, at=(0, SIDE + 8))
    into = targets(groups, [0, 1, 2], [in_buffer(*rows, cols)])
    assert into is not None
    given: list[tuple] = []
    monkeypatch.setattr(dispatch, "run", lambda *args, **kwargs: given.append(args))
    factors = chain.factors([], None)
    given.clear()
    multiply(*factors, into[0])
    multiply_and_apply(*factors, into[0], [])
    (_, *gemm_add), (_, *gemm_apply) = given
    cuda_products._items(False, *gemm_add)
    cuda_gemm_apply.check_operands(*gemm_apply[:2])
    assert len(gemm_add[0]) == len(gemm_apply[0]) == 2


ALONE = ["FSDP", "FSDP, columns", "FSDP x TP, column-wise", "FSDP x TP, row-wise"]
"""Where no other rank waits for what an owner keeps."""


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("kind", [*ALONE, "HSDP", "DDP", "DDP, state in rows"])
def test_steps_have_the_bits_of_one_process(ranks, kind, world):
    written, stepped = zip(*ranks(world).run(by_products, LIES[kind]), strict=True)
    assert all(written)
    assert all(stepped) if kind in ALONE else not any(stepped)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": torch.bfloat16, "master_dtype": torch.float32, "lr": torch.tensor(0.03)},
        {"dtype": torch.bfloat16, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"},
        {"preconditioning": "aol", "method": "gram"},
    ],
    ids=["master copies", "16-bit parameters", "AOL"],
)
def test_what_is_kept_is_stepped_with_all_options(ranks, options):
    assert all(stepped for _, stepped in ranks(2).run(partial(by_products, LIES["FSDP"], **options)))


@pytest.mark.parametrize("kind", ["EP x FSDP on rows", "FSDP on columns"])
def test_parts_of_stacked_experts_are_stepped(ranks, kind):
    job = partial(by_products, EXPERT_LIES[kind], [(4, 64, 64), (4, 32, 64)], layout="batch")
    assert any(stepped for _, stepped in ranks(4).run(job))


def test_steps_without_gradients_and_skipped_ones(ranks):
    """Two owners keep half of each of six matrices; two have no gradient, then one."""
    counts = ranks(2).run(by_products_if_at_all, LIES["FSDP"])
    assert [sum(of_step) for of_step in zip(*counts, strict=True)] == [6, 4, 5, 6]


def test_another_rule_of_decay_applies_what_products_write(ranks):
    for written, stepped in ranks(2).run(partial(by_products, LIES["FSDP"], weight_decay_rule="cautious")):
        assert written and not stepped


def test_chains_that_do_not_fit_into_the_workspace_together(ranks):
    """Though their pieces travel in one wave, as one matrix alone is larger than the workspace."""
    job = partial(by_products, LIES["FSDP"])
    together, apart = (ranks(2).run(partial(job, max_workspace_bytes=size)) for size in (2**20, 2**12))
    assert all(a[0] > b[0] for a, b in zip(apart, together, strict=True))


def test_what_a_normaliser_changes_is_not_written_by_products(ranks):
    assert ranks(2).run(partial(by_products, LIES["FSDP"], normalizer=NorMuon())) == [(0, 0)] * 2
