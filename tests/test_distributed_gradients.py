"""Gradients that are missing, lie unusually, or come from a GradScaler: defined results, the same on every rank."""

import distributed_gradient_jobs as jobs
import pytest


@pytest.mark.parametrize("kind", ["FSDP", "HSDP", "DDP", "DDP, state in rows", "FSDP x TP, row-wise"])
def test_parameters_without_a_gradient_anywhere_are_skipped(ranks, kind):
    ranks(4).run(jobs.grads_come_and_go, kind)


@pytest.mark.parametrize("kind", ["FSDP", "FSDP, columns", "FSDP x TP, row-wise"])
def test_a_shard_without_a_gradient_counts_as_zero(ranks, kind):
    ranks(4).run(jobs.grads_on_some_ranks, kind)


@pytest.mark.parametrize("kind", ["FSDP, columns", "HSDP", "DDP, state in rows"])
def test_gradients_with_gaps(ranks, kind):
    ranks(4).run(jobs.grads_with_gaps, kind)


@pytest.mark.parametrize("kind", ["FSDP", "FSDP x TP, column-wise", "DDP"])
def test_a_scaler_skips_everywhere(ranks, kind):
    ranks(4).run(jobs.scaled, kind)
