"""Missing gradients and faults: defined results, or one named error on every rank with nothing changed."""

import distributed_fault_jobs as jobs
import pytest
from distributed_pool import Pool


@pytest.mark.parametrize("kind", ["FSDP", "HSDP", "DDP", "DDP, state in rows", "FSDP x TP, row-wise"])
def test_parameters_without_a_gradient_anywhere_are_skipped(ranks, kind):
    ranks(4).run(jobs.grads_come_and_go, kind)


@pytest.mark.parametrize("kind", ["FSDP", "FSDP, columns", "FSDP x TP, row-wise"])
def test_a_shard_without_a_gradient_counts_as_zero(ranks, kind):
    ranks(4).run(jobs.grads_on_some_ranks, kind)


@pytest.mark.parametrize("kind", ["replicated", "HSDP", "DDP", "DDP, state in rows"])
def test_replicas_that_disagree_on_gradients(ranks, kind):
    assert len(set(ranks(4).run(jobs.replicas_disagree, kind))) == 1


@pytest.mark.parametrize("kind", ["FSDP", "DDP"])
def test_shuffled_parameters(ranks, kind):
    assert len(set(ranks(4).run(jobs.shuffled, kind))) == 1


@pytest.mark.parametrize("job", [jobs.other_shapes, jobs.other_counts, jobs.other_dtypes, jobs.other_options])
def test_ranks_that_differ(ranks, job):
    assert len(set(ranks(4).run(job))) == 1


@pytest.mark.parametrize("trouble", ["Partial", "another mesh"])
@pytest.mark.parametrize("kind", ["FSDP", "replicated"])
def test_a_bad_gradient_on_one_rank(ranks, kind, trouble):
    assert len(set(ranks(4).run(jobs.bad_grad_on_one_rank, kind, trouble))) == 1


@pytest.mark.parametrize("job", [jobs.bad_momentum_on_one_rank, jobs.bad_plain_grad_on_one_rank])
def test_other_faults_on_one_rank(ranks, job):
    assert len(set(ranks(4).run(job))) == 1


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
            "normalizer must be None for parameters that several ranks share, got AdaMuon(beta2=0.95, eps=1e-08)",
            "weight_decay_rule must be decoupled for parameters that several ranks share, got cautious",
        ]


@pytest.mark.parametrize("name", ["normalizer", "weight_decay_rule"])
def test_a_variant_that_comes_between_steps_is_refused(ranks, name):
    assert len(set(ranks(4).run(jobs.variant_between_steps, name))) == 1


def test_a_process_group_must_be_a_line(ranks):
    for text in ranks(4).run(jobs.wrong_process_group):
        assert text.startswith("process_group must be a ProcessGroup or a 1-D DeviceMesh, got DeviceMesh")


def test_no_master_copies_of_what_ranks_share(ranks):
    message = "master_dtype must be None for parameters that several ranks share, got torch.float32"
    assert ranks(4).run(jobs.master_copies) == [[message] * 4] * 4


def test_an_absent_rank_and_a_destroyed_group(ranks):
    answers = ranks(4).run(jobs.nobody_there)
    assert answers == [["CollectiveFailed"] * 2] * 3 + [["CollectiveFailed"]]


@pytest.mark.parametrize(
    "job",
    [
        jobs.two_stages,
        jobs.two_meshes,
        jobs.one_group_two_grids,
        jobs.an_empty_state_is_loaded,
        jobs.trouble_in_a_part,
        jobs.replicated_dtensors_stay_equal,
        jobs.grows,
    ],
)
def test_several_teams_and_groups(ranks, job):
    ranks(4).run(job)


@pytest.mark.parametrize("kind", ["FSDP", "FSDP x TP, column-wise", "DDP"])
def test_a_scaler_skips_everywhere(ranks, kind):
    ranks(4).run(jobs.scaled, kind)


def test_a_dead_peer(tmp_path):
    pool = Pool(2, str(tmp_path / "rendezvous"))
    try:
        (how, error), dead = pool.answers(jobs.dies)
    finally:
        pool.close()
    assert dead == ("raised", "the process ended")
    assert how == "returned" and error.startswith("CollectiveFailed: the roll call before a step failed"), error
