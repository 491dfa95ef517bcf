"""What the ranks of a pool run when something is wrong: one error on every rank, nothing changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from distributed_jobs import LIES, OPTIONS, SHAPES, Pair, full_tensors
from distributed_owner_jobs import EVEN, counted_products
from stub_backend import Asked, stub_backend
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial

from muon_kernels import Muon, use_backend
from muon_kernels.distributed.dtensors import local
from muon_kernels.variants import AdaMuon


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


def stepped(kind: str, good_steps: int) -> Pair:
    """A pair with gradients for its next step, after so many that were good."""
    pair = Pair(LIES[kind], SHAPES)
    for seed in range(good_steps):
        pair.step(seed)
    pair.set_grads(good_steps)
    return pair


def replicas_disagree(kind: str, good_steps: int) -> str:
    pair = stepped(kind, good_steps)
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


def other_options(good_steps: int) -> str:
    pair = stepped("FSDP", good_steps)
    group = pair.many.param_groups[0]
    group["weight_decay"] = 0.2 + 0.1 * (dist.get_rank() == 3)

    def repair() -> None:
        group["weight_decay"] = 0.2

    return fails(pair, "RanksDisagree", "rank 3 has lr=0.05, weight_decay=0.3", after=repair)


def bad_grad_on_one_rank(kind: str, trouble: str, good_steps: int) -> str:
    """Partial placements, or a mesh in another order: wrong on rank 2 alone."""
    pair = stepped(kind, good_steps)
    reversed_mesh = DeviceMesh("cpu", [3, 2, 1, 0])
    if dist.get_rank() == 2 and trouble == "Partial":
        grad = torch.randn(SHAPES[4])
        pair.shared[4].grad = DTensor.from_local(grad, pair.mesh, [Partial()], run_check=False)
    elif dist.get_rank() == 2:
        grad = pair.shared[4].grad
        pair.shared[4].grad = DTensor.from_local(grad.to_local(), reversed_mesh, grad.placements, run_check=False)
    return fails(pair, "RankFailed", "rank 2 of 4: ValueError: parameter 4: its gradient", after=lambda: None)


def bad_momentum_on_one_rank(good_steps: int) -> str:
    pair = stepped("FSDP", good_steps)
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


def backend_on_one_rank(kind: str, good_steps: int) -> str:
    """Asked for by name, and it does not run here."""
    pair = stepped(kind, good_steps)
    message = "rank 1 of 4: BackendUnavailable: no backend of 'cuda' can run prologue: cuda: device is cpu, not cuda"
    with use_backend("cuda" if dist.get_rank() == 1 else "auto"):
        text = fails(pair, "RankFailed", message)
    pair.step(good_steps)
    pair.compare()
    return text


def backend_without_gradients() -> None:
    """One that runs nothing here is not asked to."""
    pair = stepped("FSDP", 1)
    for p in pair.shared:
        p.grad = None
    with use_backend("cuda"):
        pair.many.step()
    pair.compare()


def unknown_backend_on_one_rank(good_steps: int) -> str:
    pair = stepped("FSDP", good_steps)
    name = {"MUON_KERNELS_BACKEND": "kuda" if dist.get_rank() == 1 else "auto"}
    with patch.dict(os.environ, name):
        text = fails(pair, "RankFailed", "rank 1 of 4: ValueError: backend must be 'auto' or some of cuda, triton, ")
    pair.step(good_steps)
    pair.compare()
    return text


def negated_on_one_rank(what: str) -> str:
    pair = stepped("DDP", 0)
    p = pair.shared[4]
    state = pair.many.state[p]
    if dist.get_rank() == 1:
        if what == "gradient":
            p.grad = torch._neg_view(p.grad.neg())
        elif what == "momentum":
            state["momentum_buffer"] = torch._neg_view(state["momentum_buffer"])
        else:
            p.data = torch._neg_view(p.detach().neg())
    message = f"rank 1 of 4: ValueError: parameter 4: its {what} must not be negated lazily"
    return fails(pair, "RankFailed", message)


def asked_of_the_backend(dtype: torch.dtype, options: dict[str, Any]) -> tuple[set[Asked], set[Asked]]:
    """Before a step and within it; one of the gradients is missing on rank 0, where it is taken for zero. Products
    write and step what they can."""
    pair = Pair(LIES["FSDP"], EVEN, dtype, **options)
    pair.set_grads(0)
    if dist.get_rank() == 0:
        pair.shared[4].grad = None
    with stub_backend() as stub, use_backend("cuda"), counted_products():
        pair.many.step()
        return stub.before, stub.within


def bad_plain_grad_on_one_rank(good_steps: int) -> str:
    """What this rank steps alone is wrong: nobody steps what they share."""
    pair = stepped("FSDP", good_steps)
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


def variant_between_steps(good_steps: int) -> str:
    """An option that was refused at construction comes later, as by a checkpoint."""
    pair = stepped("FSDP", good_steps)
    group = pair.many.param_groups[0]
    group["normalizer"] = AdaMuon()
    return fails(pair, "RankFailed", "ValueError: normalizer must be None or NorMuon(...) for parameters that",
                 after=lambda: group.update({"normalizer": None}))  # fmt: skip


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


def trouble_in_a_part(good_steps: int) -> str:
    """Ranks 0 and 1 disagree about a matrix of their own; what all four share is not stepped either."""
    pair = stepped("FSDP", good_steps)
    part = dist.new_group([0, 1])
    if dist.get_rank() < 2:
        own = nn.Parameter(torch.zeros(4, 4))
        own.grad = torch.ones(4, 4) if dist.get_rank() else None
        pair.many.add_param_group({"params": [own], "process_group": part})
    expected = "RanksDisagree" if dist.get_rank() < 2 else "RankFailed"
    return fails(pair, expected, "parameter 9 has no gradient on ranks [0]")


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
