import torch

from muon_kernels.coefficients import resolve_coefficients
from muon_kernels.orthogonalize import Orthogonalizer, scratch_bytes
from muon_kernels.program import COUNTER_SIZE, PRODUCT_FIELDS
from muon_kernels.workspace import empty_batch, plan_waves

SHAPES = ((768, 768),) * 4 + ((3072, 768), (768, 3072), (7, 9), (1, 1))
NEEDS = tuple(8 * rows * cols for rows, cols in SHAPES)


def test_every_matrix_runs_once_within_the_bound():
    bound = 3 * 8 * 3072 * 768
    waves = plan_waves(SHAPES, NEEDS, bound)
    assert len(waves) > 1
    assert sorted(i for wave in waves for i in wave.order) == list(range(len(SHAPES)))
    for wave in waves:
        assert sum(NEEDS[i] for i in wave.order) <= bound
        expanded = [(r, c) for count, r, c in wave.groups for _ in range(count)]
        assert expanded == [SHAPES[i] for i in wave.order]
        assert len({group[1:] for group in wave.groups}) == len(wave.groups)


def test_a_matrix_larger_than_the_bound_gets_a_wave_of_its_own():
    waves = plan_waves(SHAPES, NEEDS, 1)
    assert [len(wave.order) for wave in waves] == [1] * len(SHAPES)


def test_one_wave_when_everything_fits():
    assert len(plan_waves(SHAPES, NEEDS, 2**40)) == 1
    assert plan_waves((), (), 1) == ()


def test_scratch_bytes_is_what_is_allocated():
    rows = resolve_coefficients("original", 5)
    for shape in ((40, 40), (24, 61), (61, 24)):
        for method in ("standard", "gram", "squaring"):
            for dtype in (torch.bfloat16, torch.float32):
                need = scratch_bytes(*shape, rows, method=method, compute_dtype=dtype)
                chain = Orthogonalizer(
                    [(3, *shape)], rows, method=method, compute_dtype=dtype, device=torch.device("cpu")
                )
                products = len(chain.plan.program.products) // PRODUCT_FIELDS
                # A counter a product, however many matrices there are.
                assert chain.inputs[0].untyped_storage().nbytes() == 3 * need - 2 * COUNTER_SIZE * products


def test_a_square_matrix_needs_three_times_itself():
    rows = resolve_coefficients("original", 5)
    counters = 15 * COUNTER_SIZE
    assert scratch_bytes(64, 64, rows, method="standard", compute_dtype=torch.float16) == 3 * 2 * 64 * 64 + counters


def test_rows_start_on_16_bytes():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        batch = empty_batch(3, 5, 9, dtype, torch.device("cpu"))
        assert batch.shape == (3, 5, 9)
        assert batch.stride(2) == 1
        assert all(s * dtype.itemsize % 16 == 0 for s in batch.stride()[:2])
