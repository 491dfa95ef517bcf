"""What has no plan is refused by the constructor, which leaves the optimizer as it was."""

import distributed_refusal_jobs as jobs
import pytest


def test_what_has_no_plan_is_refused(ranks):
    for texts in ranks(4).run(jobs.refused_at_construction):
        patterns = [
            "UnsupportedPlacement: parameter 1: placements must be Shard or Replicate",
            "UnsupportedPlacement: parameter 1: with shape [18, 4]",
            "UnsupportedPlacement: parameter 1: layout 'flatten' needs every shard on dimension 0",
            "UnsupportedPlacement: parameter 1: a layout of a parameter on several ranks must cut rows and columns",
            "ValueError: Muon only supports 2D parameters",
        ]
        assert len(texts) == len(patterns)
        assert all(text.startswith(pattern) for text, pattern in zip(texts, patterns, strict=True)), texts


@pytest.mark.parametrize("kind", ["FSDP", "DDP"])
def test_variants_are_refused(ranks, kind):
    for texts in ranks(4).run(jobs.variants_at_construction, kind):
        assert texts == [
            "momentum_store must be None for parameters that several ranks share, got Int8Momentum(block_size=256)",
            "normalizer must be None or NorMuon(...) for parameters that several ranks share, "
            "got AdaMuon(beta2=0.95, eps=1e-08)",
            "a period needs layout 'shards' for parameters that several ranks share, got 'rows:2'",
        ]


def test_a_process_group_must_be_a_line(ranks):
    for text in ranks(4).run(jobs.wrong_process_group):
        assert text.startswith("process_group must be a ProcessGroup or a 1-D DeviceMesh, got DeviceMesh")


def test_no_stochastic_rounding_of_what_ranks_share(ranks):
    message = "rounding must be nearest for parameters that several ranks share, got stochastic"
    assert ranks(4).run(jobs.stochastic_rounding) == [[message] * 4] * 4


def test_low_rank_muon_takes_no_dtensors(ranks):
    message = "LowRankMuon does not support DTensors, got one as parameter 0, [4, 6]"
    assert ranks(4).run(jobs.low_rank) == [message] * 4
