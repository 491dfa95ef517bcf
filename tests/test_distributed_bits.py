"""On 2 and on 4 ranks, however parameters lie: the bits of one process."""

import pytest
import torch
from distributed_jobs import EXPERT_LIES, EXPERTS, LIES, SHAPES, equals_one_process


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("kind", LIES)
def test_matrices(ranks, kind, world):
    ranks(world).run(equals_one_process, kind, SHAPES, {})


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("kind", EXPERT_LIES)
def test_experts(ranks, kind, world):
    ranks(world).run(equals_one_process, kind, EXPERTS, {"layout": "batch"})
