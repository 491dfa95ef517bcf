"""LowRankMuon (experimental) beside Muon and AdamW: a matrix of rank 4 is learned from noisy samples of its products.

Prints why singular vectors must be aligned before they are averaged, then the error, the ranks and the bytes of
optimizer state of each optimizer at the best of its learning rates. A quarter of a minute on a CPU.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from _command import mean_text, positive
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LinearLR

from muon_kernels import Muon
from muon_kernels.lowrank import LowRankMuon
from muon_kernels.lowrank.moments import alignment

ROWS, COLS, RANK = 48, 32, 4
BATCH = 64
NOISE = 0.1

RATES = [0.03, 0.1, 0.3, 1.0, 3.0]
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], float, float], Optimizer]] = {
    "AdamW": lambda p, lr, momentum: AdamW(p, lr, betas=(momentum, 0.95), weight_decay=0.0),
    "Muon": lambda p, lr, momentum: Muon(p, lr, 0.0, momentum),
    "LowRankMuon": lambda p, lr, momentum: LowRankMuon(p, lr, 0.0, momentum),
    "LowRankMuon, rank >= 4": lambda p, lr, momentum: LowRankMuon(p, lr, 0.0, momentum, min_rank=RANK),
    "LowRankMuon, rank 4": lambda p, lr, momentum: LowRankMuon(p, lr, 0.0, momentum, min_rank=RANK, max_rank=RANK),
}


class Result(NamedTuple):
    """The squared error of a row of the matrix, the most and the last bytes of state, and the last rank."""

    error: float
    most_bytes: int
    last_bytes: int
    rank: str


class Task:
    """y = T x + noise with T of rank RANK; as many batches as asked for, always the same for a seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.target = self._normal(ROWS, RANK) @ self._normal(RANK, COLS) / RANK**0.5

    def losses(self, matrix: Tensor, steps: int) -> Iterator[Tensor]:
        for _ in range(steps):
            x = self._normal(BATCH, COLS)
            y = x @ self.target.mT + NOISE * self._normal(BATCH, ROWS)
            yield (x @ matrix.mT - y).square().mean()

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)


def average_lengths(momentum: float = 0.9, steps: int = 50) -> tuple[Tensor, Tensor]:
    """Lengths of running averages of the left singular vectors of noisy gradients, [RANK] as they come and aligned."""
    p = torch.zeros(ROWS, COLS, requires_grad=True)
    left_avg, right_avg, plain = torch.zeros(ROWS, RANK), torch.zeros(COLS, RANK), torch.zeros(ROWS, RANK)
    for loss in Task(0).losses(p, steps):
        (grad,) = torch.autograd.grad(loss, p)
        u, _, vh = torch.linalg.svd(grad, full_matrices=False)
        left, right = u[:, :RANK], vh.mT[:, :RANK]
        plain.lerp_(left, 1 - momentum)
        rotation = alignment(left_avg, right_avg, left, right)
        left_avg = (left_avg @ rotation).lerp_(left, 1 - momentum)
        right_avg = (right_avg @ rotation).lerp_(right, 1 - momentum)
    return plain.norm(dim=0), left_avg.norm(dim=0)


def train(name: str, lr: float, momentum: float, steps: int, seed: int) -> Result:
    """One run, with lr falling to zero linearly."""
    p = nn.Parameter(torch.zeros(ROWS, COLS))
    optimizer = OPTIMIZERS[name]([p], lr, momentum)
    schedule = LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    task = Task(seed)
    sizes = []
    for loss in task.losses(p, steps):
        optimizer.zero_grad()
        loss.backward()
        if isinstance(optimizer, LowRankMuon):
            optimizer.step(loss=loss)
        else:
            optimizer.step()
        schedule.step()
        sizes.append(sum(value.nbytes for value in optimizer.state[p].values()))
    rank = str(len(optimizer.state[p]["exp_avg"])) if isinstance(optimizer, LowRankMuon) else "-"
    error = (p.detach() - task.target).square().sum(dim=1).mean().item()
    return Result(error, max(sizes), sizes[-1], rank)


def main(arguments: list[str] | None = None) -> dict[str, list[Result]]:
    """The command; returns the results at the best learning rate, one a seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=positive, default=150)
    parser.add_argument("--seeds", type=positive, default=1)
    parser.add_argument("--momentum", type=float, default=0.8, help="of every optimizer (default: 0.8)")
    options = parser.parse_args(arguments)

    for text, lengths in zip(("as they come", "aligned"), average_lengths(), strict=True):
        print(f"average singular vectors, {text:12}  lengths {' '.join(f'{x:.2f}' for x in lengths)}")
    print(f"\n{'optimizer':24}{'lr':>5}{'squared error':>18}{'last rank':>11}{'bytes, most':>13}{'last':>7}")
    best = {}
    for name in OPTIMIZERS:
        runs = {
            lr: [train(name, lr, options.momentum, options.steps, seed) for seed in range(options.seeds)]
            for lr in RATES
        }
        lr = min(runs, key=lambda lr: sum(result.error for result in runs[lr]))
        best[name] = runs[lr]
        errors = mean_text([result.error for result in best[name]], 4)
        last = best[name][-1]
        print(f"{name:24}{lr:5g}{errors:>18}{last.rank:>11}{last.most_bytes:13d}{last.last_bytes:7d}")
    return best


if __name__ == "__main__":
    main()
