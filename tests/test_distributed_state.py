"""Momentum lies as its parameter does, and checkpoints move between topologies without changing a bit."""

import distributed_state_jobs as jobs
import pytest
import torch

from muon_kernels.variants import NorMuon

DOUBLE = {"compute_dtype": torch.float64}


@pytest.fixture(scope="module")
def alone():
    model, optimizer = jobs.build("alone", **DOUBLE)
    jobs.steps(model, optimizer, 0, 4)
    return jobs.values(model, optimizer)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        if "norm" in name or "bias" in name:  # AdamW's vectorised loops round other elements at other lengths
            torch.testing.assert_close(torch.tensor(value), torch.tensor(expected[name]), rtol=1e-12, atol=1e-14)
        else:
            assert value == expected[name], name


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        (("FSDP", 4), ("FSDP", 2)),
        (("FSDP", 2), ("FSDP", 4)),
        (("FSDP", 4), ("alone", 1)),
        (("HSDP", 4), ("FSDP", 4)),
        (("FSDP x TP", 4), ("FSDP", 2)),
        (("FSDP", 2), ("FSDP x TP", 4)),
        (("DDP", 4), ("FSDP", 2)),
        (("DDP, state in rows", 4), ("FSDP", 2)),
        (("FSDP", 2), ("DDP, state in rows", 4)),
        (("FSDP", 4), ("DDP", 2)),
    ],
    ids=lambda end: f"{end[0]} on {end[1]}",
)
def test_a_checkpoint_on_another_topology(ranks, tmp_path, alone, saved, loaded):
    for found in ranks(saved[1]).run(jobs.save_and_go_on, saved[0], str(tmp_path), DOUBLE):
        assert_same(found, alone)
    kind, world = loaded
    arguments = (kind, str(tmp_path), DOUBLE)
    resumed = [jobs.load_and_go_on(*arguments)] if world == 1 else ranks(world).run(jobs.load_and_go_on, *arguments)
    for found in resumed:
        assert_same(found, alone)


@pytest.mark.parametrize(
    "beside",
    [{"momentum_dtype": torch.float32}, {"master_dtype": torch.float32}, {"normalizer": NorMuon()}],
    ids=lambda options: next(iter(options)),
)
def test_what_is_kept_beside_bfloat16_parameters(ranks, tmp_path, beside):
    options = {"dtype": torch.bfloat16, "compute_dtype": torch.bfloat16} | beside
    saved = ranks(4).run(jobs.save_and_go_on, "FSDP", str(tmp_path), options)[0]
    resumed = ranks(2).run(jobs.load_and_go_on, "FSDP", str(tmp_path), options)[0]
    assert {k: v for k, v in saved.items() if "weight" in k} == {k: v for k, v in resumed.items() if "weight" in k}


@pytest.mark.parametrize("kind", jobs.KINDS[1:])
def test_states_exist_before_the_first_step(ranks, kind):
    answers = ranks(4).run(jobs.keys_before_the_first_step, kind)
    assert all(answer == answers[0] for answer in answers)
    keys, lies = answers[0]
    assert [entry for _, entry in keys] == [["momentum_buffer"]] * 3 + [["exp_avg", "exp_avg_sq", "step"]] * 3
    for param, momentum in lies:
        assert momentum == ("(Shard(dim=0),)" if kind == "DDP, state in rows" else param)


@pytest.mark.parametrize("kind", jobs.KINDS[1:])
def test_state_dict_round_trip(ranks, kind):
    ranks(4).run(jobs.round_trip_in_place, kind)


@pytest.mark.parametrize("kind", jobs.KINDS[1:])
def test_training_follows_one_process(ranks, kind):
    expected = jobs.trained("alone")
    assert expected[-1] < 0.7 * expected[0]
    for losses in ranks(4).run(jobs.trained, kind):
        assert losses == pytest.approx(expected, rel=1e-5)  # measured: at most 1.6e-7


@pytest.mark.parametrize("kind", ["FSDP", "HSDP", "DDP, state in rows"])
def test_accumulated_and_clipped_gradients_follow_one_process(ranks, kind):
    """Two micro-batches without communication between them are one batch; a norm is that of all shards."""
    expected = jobs.trained("alone", clip=0.5)
    assert expected != jobs.trained("alone")
    for losses in ranks(4).run(jobs.trained, kind, 2, 0.5):
        assert losses == pytest.approx(expected, rel=1e-5)
