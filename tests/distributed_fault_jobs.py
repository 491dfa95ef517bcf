"""What the ranks of a pool run when something is missing or wrong: one error on every rank, nothing changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from distributed_jobs import EXPERT_LIES, LIES, OPTIONS, SHAPES, Lies, Pair, full_tensors
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from muon_kernels import Muon
from muon_kernels.distributed.binding import local
from muon_kernels.variants import AdaMuon, NorMuon


def grads_come_and_go(kind: str) -> None:
    """Without a gradient anywhere a parameter and its momentum stay as they are."""
    pair = Pair(LIES[kind], SHAPES)
    for step, without in enumerate([{0}, {1, 3, 5}, set(range(len(SHAPES))), set(), {8}]):
        pair.step(step, without)
        pair.compare()


def grads_on_some_ranks(kind: str) -> None:
    """Where only other ranks have a gradient, it counts as zero."""
    lies = LIES[kind]
    pair = Pair(lies, SHAPES)
    rank = dist.get_rank()
    for step in range(3):
        pair.set_grads(step)
        for i in range(0, len(SHAPES), 2):
            absent = (step + i) % 4
            whole = pair.alone[i].grad.clone()
            marks = lies.put(torch.full(SHAPES[i], -1), pair.mesh)
            everywhere = [torch.zeros(SHAPES[i]) for _ in range(4)]
            mine = DTensor.from_local(
                torch.full_like(local(marks), rank, dtype=torch.float32), pair.mesh, marks.placements, run_check=False,
                shape=marks.shape, stride=marks.stride(),
            )  # fmt: skip
            dist.all_gather(everywhere, mine.full_tensor())
            pair.alone[i].grad = torch.where(everywhere[0] == absent, 0.0, whole)
            if rank == absent:
                pair.shared[i].grad = None
        pair.one.step()
        pair.many.step()
        pair.compare()


def fails(pair: Pair, expected: str, message: str, *, after: Callable[[], None] | None = None) -> str:
    """A step that raises the error named `expected` and changes nothing; `after` repairs, and the next step is good."""
    before = [local(t).clone() for p in pair.shared for t in (p.detach(), pair.many.state[p]["momentum_buffer"])]
    try:
        pair.many.step()
    except RuntimeError as error:
        assert type(error).__name__ == expected, repr(error)
        assert message in str(error), str(error)
        text = str(error)
    else:
        raise AssertionError(f"nothing was raised instead of {expected}")
    now = [local(t) for p in pair.shared for t in (p.detach(), pair.many.state[p]["momentum_buffer"])]
    assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))
    if after is not None:
        after()
        pair.step(1)
        pair.compare()
    return text


def replicas_disagree(kind: str) -> str:
    pair = Pair(LIES[kind], SHAPES)
    pair.set_grads(0)
    if dist.get_rank() == 1:
        pair.shared[4].grad = None
    return fails(pair, "RanksDisagree", "parameter 4 has no gradient on ranks [1]", after=lambda: None)


def shuffled(kind: str) -> str:
    pair = Pair(LIES[kind], SHAPES)
    pair.set_grads(0)
    params = list(reversed(pair.shared)) if dist.get_rank() == 1 else pair.shared
    pair.many = Muon(params, **OPTIONS, **pair.lies.options())
    return fails(pair, "RanksDisagree", "parameter number 0 is 0 [1, 9]")


def other_shapes() -> str:
    pair = Pair(LIES["DDP"], [(4, 6 + 2 * (dist.get_rank() == 2))])
    pair.set_grads(0)
    return fails(pair, "RanksDisagree", "is 0 [4, 6] Replicate on rank 0 and 0 [4, 8] Replicate on rank 2")


def other_counts() -> str:
    pair = Pair(LIES["DDP"], SHAPES[: 3 + (dist.get_rank() == 2)])
    pair.set_grads(0)
    return fails(pair, "RanksDisagree", "hold [3, 3, 4, 3] parameters")


def other_dtypes() -> str:
    pair = Pair(LIES["DDP"], SHAPES, torch.bfloat16 if dist.get_rank() == 1 else torch.float32)
    pair.set_grads(0)
    return fails(pair, "RanksDisagree", "torch.float32, rank 1 has lr=0.05")


def other_options() -> str:
    pair = Pair(LIES["FSDP"], SHAPES)
    pair.set_grads(0)
    group = pair.many.param_groups[0]
    group["weight_decay"] = 0.2 + 0.1 * (dist.get_rank() == 3)

    def repair() -> None:
        group["weight_decay"] = 0.2

    return fails(pair, "RanksDisagree", "rank 3 has lr=0.05, weight_decay=0.3", after=repair)


def bad_grad_on_one_rank(kind: str, trouble: str) -> str:
    """Partial placements, or a mesh in another order: wrong on rank 2 alone."""
    pair = Pair(LIES[kind], SHAPES)
    pair.set_grads(0)
    reversed_mesh = DeviceMesh("cpu", [3, 2, 1, 0])
    if dist.get_rank() == 2 and trouble == "Partial":
        grad = torch.randn(SHAPES[4])
        pair.shared[4].grad = DTensor.from_local(grad, pair.mesh, [Partial()], run_check=False)
    elif dist.get_rank() == 2:
        grad = pair.shared[4].grad
        pair.shared[4].grad = DTensor.from_local(grad.to_local(), reversed_mesh, grad.placements, run_check=False)
    return fails(pair, "RankFailed", "rank 2 of 4: ValueError: parameter 4: its gradient", after=lambda: None)


def bad_momentum_on_one_rank() -> str:
    pair = Pair(LIES["FSDP"], SHAPES)
    pair.set_grads(0)
    state = pair.many.state[pair.shared[3]]
    good = state["momentum_buffer"]
    if dist.get_rank() == 1:
        state["momentum_buffer"] = torch.zeros(3, 24)

    def expected() -> str:
        try:
            pair.many.step()
        except RuntimeError as error:
            assert type(error).__name__ == "RankFailed", repr(error)
            return str(error)
        raise AssertionError("nothing was raised")

    text = expected()
    assert "rank 1 of 4: ValueError: parameter 3: its momentum must" in text, text
    state["momentum_buffer"] = good
    pair.step(1)
    return text


def bad_plain_grad_on_one_rank() -> str:
    """What this rank steps alone is wrong: nobody steps what they share."""
    pair = Pair(LIES["FSDP"], SHAPES)
    pair.set_grads(0)
    plain = nn.Parameter(torch.zeros(3, 4))
    pair.many.add_param_group({"params": [plain]})
    plain.grad = torch.zeros(3, 4).to_sparse() if dist.get_rank() == 0 else torch.zeros(3, 4)
    return fails_without_momentum(pair, plain)


def fails_without_momentum(pair: Pair, plain: nn.Parameter) -> str:
    before = [local(p.detach()).clone() for p in pair.shared]
    try:
        pair.many.step()
    except RuntimeError as error:
        assert type(error).__name__ == "RankFailed" and "sparse" in str(error), repr(error)
        assert all(torch.equal(a, local(p.detach())) for a, p in zip(before, pair.shared, strict=True))
        assert torch.equal(plain.detach(), torch.zeros(3, 4))
        return str(error)
    raise AssertionError("nothing was raised")


def refused_at_construction() -> list[str]:
    """Placements and layouts that have no plan; the error leaves the optimizer as it was."""
    mesh = LIES["FSDP"].mesh()
    good = nn.Parameter(LIES["FSDP"].put(torch.zeros(4, 4), mesh))
    optimizer = Muon([good])
    partial = DTensor.from_local(torch.zeros(4, 4), mesh, [Partial()], run_check=False)
    uneven = DTensor.from_local(torch.zeros(7, 4), mesh, [Shard(0)], run_check=False, shape=(18, 4), stride=(4, 1))
    conv = EXPERT_LIES["FSDP on columns"].put(torch.zeros(4, 3, 4), mesh)
    rows = LIES["FSDP"].put(torch.zeros(4, 4), mesh)
    texts = []
    for bad, layout in [
        (partial, None),
        (uneven, None),
        (conv, "flatten"),
        (rows, lambda t: [t[::2], t[1::2]]),
        (conv, None),
    ]:
        try:
            optimizer.add_param_group({"params": [nn.Parameter(bad)], "layout": layout})
        except (RuntimeError, ValueError) as error:
            texts.append(f"{type(error).__name__}: {error}")
        assert len(optimizer.param_groups) == 1 and list(optimizer.state) == [good]
    return texts


def variants_at_construction(kind: str) -> list[str]:
    """One text for each option; groups without Muon do not mind."""
    lies = LIES[kind]
    make = lambda: nn.Parameter(lies.put(torch.ones(4, 4), lies.mesh()))  # noqa: E731
    optimizer = Muon([make()], **lies.options())
    texts = []
    for options in ({"normalizer": AdaMuon()}, {"weight_decay_rule": "cautious"}):
        try:
            optimizer.add_param_group({"params": [make()], **options})
        except ValueError as error:
            texts.append(str(error))
        assert len(optimizer.param_groups) == 1 and len(optimizer.state) == 1
        Muon([{"params": [make()], "use_muon": False}], **options, **lies.options())
    return texts


def variant_between_steps(name: str) -> str:
    """An option that was refused at construction comes later, as by a checkpoint."""
    pair = Pair(LIES["FSDP"], SHAPES)
    pair.set_grads(0)
    group = pair.many.param_groups[0]
    plain = group[name]
    group[name] = {"normalizer": NorMuon(), "weight_decay_rule": "cautious"}[name]
    return fails(pair, "RankFailed", f"ValueError: {name} must be {plain} for parameters that several ranks share",
                 after=lambda: group.update({name: plain}))  # fmt: skip


def nobody_there() -> list[str]:
    """A rank that does not come, and a group that was destroyed."""
    texts = []
    for trouble in ("absent", "destroyed"):
        group = dist.new_group(list(range(4)), timeout=timedelta(seconds=1))
        params = [nn.Parameter(t) for t in full_tensors([(6, 4), (8, 8)], 0)]
        optimizer = Muon(params, process_group=group)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        before = [p.detach().clone() for p in params]
        if trouble == "destroyed":
            dist.destroy_process_group(group)
        if trouble == "destroyed" or dist.get_rank() != 3:
            try:
                optimizer.step()
            except RuntimeError as error:
                texts.append(type(error).__name__)
            assert all(torch.equal(a, p.detach()) for a, p in zip(before, params, strict=True))
        dist.barrier()
    return texts


def two_stages() -> None:
    """Pipeline stages of 3 ranks and of 1, each with its own model; a stage without matrices has nothing to do."""
    first = dist.get_rank() < 3
    groups = [dist.new_group([0, 1, 2]), dist.new_group([3])]
    mesh = DeviceMesh.from_group(groups[0 if first else 1], "cpu")

    class Stage(Lies):
        def mesh(self):
            return mesh

    shapes = SHAPES if first else SHAPES[2:5]
    pair = Pair(Stage({}, (Shard(0),)), shapes)
    for step in range(2):
        pair.step(step)
        pair.compare()
    Muon([]).step()


def two_meshes() -> None:
    """Dense matrices on all ranks, experts on a mesh of their own, plain ones on nobody else's: one optimizer."""
    dense, experts = Pair(LIES["FSDP"], SHAPES), Pair(EXPERT_LIES["EP x FSDP on rows"], [(4, 6, 10)], layout="batch")
    plain = [nn.Parameter(torch.ones(4, 4)) for _ in range(2)]
    dense.many.add_param_group({"params": experts.shared, "layout": "batch"})
    dense.many.add_param_group({"params": plain[:1]})
    dense.one.add_param_group({"params": plain[1:]})
    dense.many.add_param_group({"params": [], "momentum": 0.5})
    experts.many = dense.many
    for step in range(3):
        experts.set_grads(step)
        experts.one.step()
        for p in plain:
            p.grad = torch.full_like(p, step + 1.0)
        dense.step(step)
        dense.compare()
        experts.compare()
        assert torch.equal(plain[0].detach(), plain[1].detach())


def one_group_two_grids() -> None:
    """HSDP and DDP over the same ranks in one optimizer: one group of processes, two meshes."""
    grid, line = Pair(LIES["HSDP"], SHAPES), Pair(LIES["DDP"], SHAPES[3:6])
    grid.many.add_param_group({"params": line.shared, "process_group": dist.group.WORLD})
    grid.one.add_param_group({"params": line.alone})
    line.one, line.many = grid.one, grid.many
    for step in range(2):
        line.set_grads(step)
        grid.step(step)
        grid.compare()
        line.compare()


def an_empty_state_is_loaded() -> None:
    """A checkpoint from before the first step of a process that works alone has no momenta: they are zero."""
    pair = Pair(LIES["FSDP"], SHAPES)
    pair.step(0)
    for whose in (pair.one, pair.many):
        whose.load_state_dict({"state": {}, "param_groups": whose.state_dict()["param_groups"]})
    pair.many.explain()
    pair.step(1)
    pair.compare()


def wrong_process_group() -> str:
    try:
        Muon([nn.Parameter(torch.zeros(2, 2))], process_group=LIES["HSDP"].mesh())
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was raised")


def master_copies() -> list[str]:
    """Of parameters that several ranks share, as DTensors and as plain tensors, with Muon and without."""
    raised = []
    for use_muon in (True, False):
        for lies in (LIES["FSDP"], LIES["DDP"]):
            p = nn.Parameter(lies.put(torch.zeros(4, 4, dtype=torch.bfloat16), lies.mesh()))
            try:
                Muon([{"params": [p], "use_muon": use_muon}], master_dtype=torch.float32, **lies.options())
            except ValueError as error:
                raised.append(str(error))
    return raised


def trouble_in_a_part() -> str:
    """Ranks 0 and 1 disagree about a matrix of their own; what all four share is not stepped either."""
    pair = Pair(LIES["FSDP"], SHAPES)
    pair.set_grads(0)
    part = dist.new_group([0, 1])
    if dist.get_rank() < 2:
        own = nn.Parameter(torch.zeros(4, 4))
        own.grad = torch.ones(4, 4) if dist.get_rank() else None
        pair.many.add_param_group({"params": [own], "process_group": part})
    expected = "RanksDisagree" if dist.get_rank() < 2 else "RankFailed"
    return fails(pair, expected, "parameter 9 has no gradient on ranks [0]")


def replicated_dtensors_stay_equal() -> None:
    mesh = LIES["HSDP"].mesh()
    p = nn.Parameter(LIES["HSDP"].put(torch.randn(9, 7, generator=torch.Generator().manual_seed(0)), mesh))
    optimizer = Muon([p], **OPTIONS)
    for step in range(20):
        p.grad = LIES["HSDP"].put(torch.randn(9, 7, generator=torch.Generator().manual_seed(step)), mesh)
        optimizer.step()
    whole = p.detach().redistribute(mesh, [Replicate(), Replicate()]).to_local()
    everywhere = [torch.empty_like(whole) for _ in range(4)]
    dist.all_gather(everywhere, whole)
    assert all(torch.equal(everywhere[0], other) for other in everywhere)


def scaled(kind: str) -> None:
    """GradScaler: an infinity in one shard skips the step on every rank, as in one process."""
    pair = Pair(LIES[kind], SHAPES)
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1) for _ in range(2)]
    for step in range(4):
        grads = [grad * 8 for grad in full_tensors(SHAPES, 100 + step)]
        if step == 1:
            grads[4][-1, -1] = torch.inf
        for i, grad in enumerate(grads):
            pair.alone[i].grad, pair.shared[i].grad = grad.clone(), pair.lies.put(grad, pair.mesh)
        for scaler, optimizer in zip(scalers, (pair.one, pair.many), strict=True):
            scaler.scale(torch.tensor(1.0))
            scaler.step(optimizer)
            scaler.update()
        pair.compare()
    assert scalers[0].get_scale() == scalers[1].get_scale() == 32.0


def grows() -> None:
    """A group that is added later is planned with the next step; the state dict knows it at once."""
    pair, later = Pair(LIES["FSDP"], SHAPES), Pair(LIES["FSDP"], [(12, 5)])
    pair.step(0)
    for whose, more in ((pair.one, later.alone), (pair.many, later.shared)):
        whose.add_param_group({"params": more, "lr": 0.01, "momentum": 0.5})
    assert later.shared[0] in pair.many.state
    later.one, later.many = pair.one, pair.many
    for step in range(1, 3):
        later.set_grads(step)
        pair.step(step)
        pair.compare()
        later.compare()


def dies() -> str:
    """Rank 1 ends between two steps; the other rank's error, and whether it has changed anything."""
    pair = Pair(LIES["FSDP"], SHAPES)
    pair.step(0)
    pair.set_grads(1)
    if dist.get_rank() == 1:
        os._exit(0)
    before = [local(p.detach()).clone() for p in pair.shared]
    try:
        pair.many.step()
    except RuntimeError as error:
        assert all(torch.equal(a, local(p.detach())) for a, p in zip(before, pair.shared, strict=True))
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was raised")
