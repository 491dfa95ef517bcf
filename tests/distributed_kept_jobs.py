"""What the ranks of a pool run to see what an optimizer keeps of the tensors that ranks share from step to step."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from unittest.mock import patch

import torch
import torch.distributed as dist
from distributed_fault_jobs import fails
from distributed_jobs import LIES, SHAPES, Pair
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from muon_kernels.distributed import runtime

NUMBER = 5
"""Of the parameter that something is wrong with, [24, 40]."""


def with_local(tensor: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The same DTensor with another local tensor; a plain tensor is its own."""
    if not isinstance(tensor, DTensor):
        return change(tensor)
    return DTensor.from_local(
        change(tensor.to_local()),
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def shorter_gradient(pair: Pair) -> None:
    p = pair.shared[NUMBER]
    p.grad = with_local(p.grad, lambda here: here[1:])


def shorter_momentum(pair: Pair) -> None:
    state = pair.many.state[pair.shared[NUMBER]]
    state["momentum_buffer"] = with_local(state["momentum_buffer"], lambda here: here[1:])


def momentum_of_integers(pair: Pair) -> None:
    state = pair.many.state[pair.shared[NUMBER]]
    state["momentum_buffer"] = with_local(state["momentum_buffer"], Tensor.int)


def momentum_elsewhere(pair: Pair) -> None:
    state = pair.many.state[pair.shared[NUMBER]]
    state["momentum_buffer"] = DTensor.from_local(torch.zeros(24, 40), pair.mesh, [Replicate()], run_check=False)


def column_major_momentum(pair: Pair) -> None:
    state = pair.many.state[pair.shared[NUMBER]]
    state["momentum_buffer"] = with_local(state["momentum_buffer"], lambda here: here.T.contiguous().T)


def column_major_parameter(pair: Pair) -> None:
    p = pair.shared[NUMBER]
    p.data = p.data.T.contiguous().T


def wrong_after_a_good_step(kind: str, spoil: Callable[[Pair], None], message: str, layout: str | None) -> str:
    """The error of a step that is wrong on rank 1; the steps before it and after it are good."""
    pair = Pair(LIES[kind], SHAPES, layout=layout)
    pair.step(0)
    pair.set_grads(1)
    p = pair.shared[NUMBER]
    data, momentum = p.data, pair.many.state[p]["momentum_buffer"]
    if dist.get_rank() == 1:
        spoil(pair)

    def repair() -> None:
        p.data, pair.many.state[p]["momentum_buffer"] = data, momentum

    return fails(pair, "RankFailed", f"rank 1 of 4: ValueError: parameter {NUMBER}: {message}", after=repair)


def other_shape_after_a_good_step(kind: str) -> str:
    """The error of a step before which a parameter, its gradient and its momentum got another shape."""
    pair = Pair(LIES[kind], SHAPES)
    pair.step(0)
    pair.set_grads(1)
    p = pair.shared[NUMBER]
    state = pair.many.state[p]
    p.data = torch.zeros(28, 40)
    p.grad = torch.ones(28, 40)
    rows = Shard(0) if isinstance(state["momentum_buffer"], DTensor) else None
    momentum = torch.zeros(28, 40)
    state["momentum_buffer"] = momentum if rows is None else distribute_tensor(momentum, pair.mesh, [rows])
    return fails(pair, "RankFailed", f"ValueError: parameter {NUMBER}: its local tensor must be [24, 40] as it was")


def checked(kind: str) -> list[int]:
    """How many parameters each of some steps checks: the first, one like it, one without a gradient, one like that, one
    with a new momentum in another dtype."""
    pair, counts = Pair(LIES[kind], SHAPES), []
    with patch.object(runtime, "check_tensors", side_effect=runtime.check_tensors) as check:

        def step(seed: int, without: tuple[int, ...] = ()) -> None:
            check.reset_mock()
            pair.step(seed, without)
            pair.compare()
            counts.append(check.call_count)

        step(0)
        step(1)
        step(2, without=(2,))
        step(3, without=(2,))
        for optimizer, p in ((pair.many, pair.shared[3]), (pair.one, pair.alone[3])):
            state = optimizer.state[p]
            state["momentum_buffer"] = state["momentum_buffer"].double()
        step(4, without=(2,))
    return counts


def alive_after_a_step(kind: str) -> int:
    """How many gradients and momenta outlive their optimizer's references to them."""
    pair = Pair(LIES[kind], SHAPES)
    pair.step(0)
    held = [weakref.ref(tensor) for p in pair.shared for tensor in (p.grad, pair.many.state[p].pop("momentum_buffer"))]
    for p in pair.shared:
        p.grad = None
    gc.collect()
    return sum(reference() is not None for reference in held)
