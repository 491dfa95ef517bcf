"""Layout "shards": every rank steps what it holds, and nothing is sent but in the steps of whole matrices."""

import distributed_shard_jobs as jobs
import pytest
import torch

from muon_kernels import Muon


@pytest.mark.parametrize(
    ("kind", "blocks"), [("FSDP", "rows"), ("FSDP, columns", "cols"), ("both on rows", "rows")], ids=str
)
@pytest.mark.parametrize("options", [{"period": 3, "block_lr_scale": 0.5}, {"period": None}], ids=str)
def test_blocks_of_one_process(ranks, kind, blocks, options):
    whole = {0, 3, 6} if options["period"] else set()
    for collectives in ranks(4).run(jobs.blocks_of_one_process, kind, blocks, options):
        assert {step for step, calls in enumerate(collectives) if calls} == whole


def test_ranks_count_steps_alike(ranks):
    assert ranks(4).run(jobs.a_rank_without_gradients) == [[1, 0, 1, 0]] * 4


def test_what_is_refused(ranks):
    text = "parameter 0: layout 'shards' needs a DTensor, got a tensor that all ranks hold"
    assert ranks(4).run(jobs.refused) == [text] * 4


def test_a_plain_tensor_is_its_own_shard():
    results = []
    for layout in (None, "shards"):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(6, 8))
        p.grad = torch.randn(6, 8)
        Muon([p], layout=layout).step()
        results.append(p.detach())
    assert torch.equal(*results)
