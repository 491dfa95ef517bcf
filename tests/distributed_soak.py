"""Training that loses a rank at random steps and goes on from checkpoints ends with the bits of one that loses none.

    python tests/distributed_soak.py --steps 500 --kills 20

Four processes train a small FSDP2 model. A rank is killed before a random exchange of a random step, or after the step,
where a checkpoint may be due; when the others have raised, all start again from the newest whole checkpoint.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Timer
from typing import NamedTuple

import torch
import torch.distributed as dist
from distributed_pool import Pool
from distributed_state_jobs import Net, build, load, save, values
from torch import Tensor

from muon_kernels import Muon
from muon_kernels.distributed.exchange import Exchange
from muon_kernels.distributed.team import Team, Transfer

KINDS = ("FSDP", "HSDP", "FSDP x TP")
BATCH = 16
SECONDS = 900  # for all steps between two deaths
LAST_POINT = 3  # the step of a single wave has at most three exchanges


class Death(NamedTuple):
    """Which rank ends in which step: before its exchange number `point`, or after it if there are not so many."""

    rank: int
    step: int
    point: int


def train(kind: str, folder: str, steps: int, every: int, death: Death | None) -> dict[str, list]:
    """Trains from the newest checkpoint in `folder` to step `steps`, and writes one after each `every` steps.

    Returns every parameter and every state of the optimizer, whole.
    """
    try:
        return values(*_train(kind, folder, steps, every, death))
    except Exception:
        # As a launcher would end it: who waits for this rank, in FSDP's collectives for half an hour, hears of it.
        Timer(1.0, os._exit, (1,)).start()
        raise


def _train(kind: str, folder: str, steps: int, every: int, death: Death | None) -> tuple[Net, Muon]:
    model, optimizer = build(kind, torch.float32)
    first = newest_checkpoint(folder)
    if first:
        load(model, optimizer, f"{folder}/{first}")
    for step in range(first, steps):
        doomed = death is not None and death.step == step and death.rank == dist.get_rank()
        if doomed:
            die_before_exchange(death.point)
        train_step(kind, model, optimizer, step)
        if doomed:
            die()
        if (step + 1) % every == 0:
            save(model, optimizer, f"{folder}/{step + 1}")
    return model, optimizer


def newest_checkpoint(folder: str) -> int:
    """Its step, 0 if there is none; the metadata are written when all ranks have written their parts."""
    return max((int(path.parent.name) for path in Path(folder).glob("*/.metadata")), default=0)


def train_step(kind: str, model: Net, optimizer: Muon, step: int) -> None:
    """One step towards the same targets, with inputs that depend on `step` alone."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 10, generator=generator)
    parts = dist.get_world_size() // (2 if kind == "FSDP x TP" else 1)
    own = x.chunk(parts)[dist.get_rank() * parts // dist.get_world_size()]
    (model(own) - torch.sin(own[:, :7] * 2)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def die() -> None:
    """No clean-up, as when a machine is lost."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_before_exchange(point: int) -> None:
    """This process ends when it would begin its exchange number `point`, counted from now."""
    begun, start = iter(range(point)), Team.start

    def start_or_die(team: Team, exchange: Exchange, send: Tensor, receive: Tensor, what: str) -> Transfer:
        if next(begun, None) is None:
            die()
        return start(team, exchange, send, receive, what)

    Team.start = start_or_die


def random_deaths(seed: int, count: int, steps: int, world: int) -> list[Death]:
    """In the order of their steps."""
    chosen = random.Random(seed)
    return [
        Death(chosen.randrange(world), step, chosen.randint(0, LAST_POINT))
        for step in sorted(chosen.sample(range(steps), count))
    ]


def soak(
    kind: str, world: int, folder: Path, steps: int, every: int, deaths: Sequence[Death]
) -> tuple[list[list[str]], list[dict[str, list]]]:
    """Trains in one generation of processes after another; each but the last one ends with a death.

    Returns the errors of the survivors of each death, and what every rank of the last generation ends with.

    Raises:
        AssertionError: a rank that should have died or raised did not, or the last generation did not end well.
    """
    errors = []
    for number, death in enumerate([*deaths, None]):
        pool = Pool(world, str(folder / f"rendezvous {number}"), SECONDS)
        try:
            answers = pool.answers(train, kind, str(folder), steps, every, death)
        finally:
            pool.close()
        if death is None:
            assert all(how == "returned" for how, _ in answers), answers
            return errors, [value for _, value in answers]
        assert answers.pop(death.rank) == ("raised", "the process ended"), answers
        assert all(how == "raised" and "Traceback" in text for how, text in answers), answers
        errors.append([text for _, text in answers])
        named = sum("CollectiveFailed" in text for text in errors[-1])
        print(f"{death}: {named} of {world - 1} others raised CollectiveFailed, back to "
              f"{newest_checkpoint(str(folder))}", flush=True)  # fmt: skip
    raise AssertionError("the last generation has no death")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status is 1 if bits differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--every", type=int, default=10, help="steps between two checkpoints")
    parser.add_argument("--kind", choices=KINDS, default="HSDP")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    world = 4
    deaths = random_deaths(options.seed, options.kills, options.steps, world)
    with tempfile.TemporaryDirectory() as undisturbed, tempfile.TemporaryDirectory() as disturbed:
        common = options.steps, options.every
        _, expected = soak(options.kind, world, Path(undisturbed), *common, [])
        _, found = soak(options.kind, world, Path(disturbed), *common, deaths)
    equal = all(value == expected[0] for value in (*expected, *found))
    print(f"{options.steps} steps, {len(deaths)} deaths: {'equal' if equal else 'DIFFERENT'} bits")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
