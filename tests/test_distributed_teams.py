"""Several meshes, process groups and optimizers in one job, and replicas over many steps."""

import distributed_team_jobs as jobs
import pytest


@pytest.mark.parametrize("kind", ["FSDP", "FSDP, columns", "replicated", "DDP", "DDP, state in rows"])
def test_stages_of_three_ranks_and_of_one(ranks, kind):
    ranks(4).run(jobs.two_stages, kind)


@pytest.mark.parametrize("kind", ["HSDP", "DDP", "DDP, state in rows"])
def test_replicas_stay_equal(ranks, kind):
    ranks(4).run(jobs.replicas_stay_equal, kind)


@pytest.mark.parametrize("job", [jobs.two_meshes, jobs.one_group_two_grids, jobs.an_empty_state_is_loaded, jobs.grows])
def test_several_teams_and_groups(ranks, job):
    ranks(4).run(job)
