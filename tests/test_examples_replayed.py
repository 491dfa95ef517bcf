"""Steps that a GPU replays: the losses of steps that run as they are."""

import pytest
import torch
from _replayed import EAGER_STEPS, replayed

from muon_kernels import Muon


def losses(device: torch.device, replay: bool, steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(24, 16, generator=generator).to(device))
    optimizer = Muon([weight], 0.05, 0.0)
    inputs = torch.randn(steps, 8, 16, generator=generator).to(device)

    def step(x: torch.Tensor) -> torch.Tensor:
        loss = (x @ weight.mT).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    advance = replayed(step, device) if replay else step
    return [advance(x) for x in inputs]


def test_other_devices_run_the_step_itself() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        return x

    assert replayed(step, torch.device("cpu")) is step


@pytest.mark.gpu
def test_replayed_steps_have_the_same_losses() -> None:
    device = torch.device("cuda")
    steps = EAGER_STEPS + 5
    assert torch.equal(torch.stack(losses(device, True, steps)), torch.stack(losses(device, False, steps)))
