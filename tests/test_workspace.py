import torch

from muon_kernels.workspace import empty_batch, plan_waves, scratch_bytes

SHAPES = ((768, 768),) * 4 + ((3072, 768), (768, 3072), (7, 9), (1, 1))


def test_every_matrix_runs_once_within_the_bound():
    bound = 3 * scratch_bytes(3072, 768, 2)
    waves = plan_waves(SHAPES, 2, bound)
    assert sorted(i for wave in waves for i in wave.order) == list(range(len(SHAPES)))
    for wave in waves:
        assert sum(scratch_bytes(*SHAPES[i], 2) for i in wave.order) <= bound
        expanded = [(r, c) for count, r, c in wave.groups for _ in range(count)]
        assert expanded == [SHAPES[i] for i in wave.order]
        assert len({group[1:] for group in wave.groups}) == len(wave.groups)


def test_a_matrix_larger_than_the_bound_gets_a_wave_of_its_own():
    waves = plan_waves(SHAPES, 2, 1)
    assert [len(wave.order) for wave in waves] == [1] * len(SHAPES)


def test_one_wave_when_everything_fits():
    assert len(plan_waves(SHAPES, 2, 2**40)) == 1
    assert plan_waves((), 2, 1) == ()


def test_rows_start_on_16_bytes():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        batch = empty_batch(3, 5, 9, dtype, torch.device("cpu"))
        assert batch.shape == (3, 5, 9)
        assert batch.stride(2) == 1
        assert all(s * dtype.itemsize % 16 == 0 for s in batch.stride()[:2])
