"""Parameter groups from a model: a small vision transformer with a convolutional stem learns the angle of gratings.

Prints which parameter goes where and why, then trains with one optimizer and one schedule. Seconds on a CPU.
"""

import argparse
import logging
import math

import torch
from torch import Tensor, nn

from muon_kernels import Muon, param_groups_for

ANGLES = 8
SIZE = 16


class VisionTransformer(nn.Module):
    """Patches of 4 x 4 pixels, two layers of 64 units, the mean over patches, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, kernel_size=4, stride=4)
        self.pos_embed = nn.Parameter(0.02 * torch.randn((SIZE // 4) ** 2, 64))
        layer = nn.TransformerEncoderLayer(64, nhead=4, dim_feedforward=128, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, ANGLES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).mT + self.pos_embed
        return self.head(self.norm(self.blocks(tokens).mean(dim=1)))


def gratings(count: int) -> tuple[Tensor, Tensor]:
    """Colour images [count, 3, SIZE, SIZE] of noisy stripes with a random phase, and the number of their angle."""
    labels = torch.randint(ANGLES, (count,))
    angle = (labels * (math.pi / ANGLES))[:, None, None]
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    phase = 2 * math.pi * torch.rand(count, 1, 1)
    stripes = torch.sin(0.9 * (x * angle.cos() + y * angle.sin()) + phase)
    return stripes[:, None] + torch.randn(count, 3, SIZE, SIZE), labels


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images whose angle is named right."""
    with torch.no_grad():
        return float((model(images).argmax(dim=1) == labels).float().mean())


def main(arguments: list[str] | None = None) -> float:
    """The command; returns the accuracy on images that were not trained on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args(arguments).steps
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    torch.manual_seed(0)
    model = VisionTransformer()
    groups = param_groups_for(model, muon={"lr": 0.02}, auxiliary={"lr": 3e-3}, verbose=True)
    optimizer = Muon(groups, weight_decay=0.01)
    print(optimizer.explain())

    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    test = gratings(512)
    print(f"accuracy before: {accuracy(model, *test):.1%}")
    for step in range(steps):
        images, labels = gratings(64)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            print(f"step {step:3d}  loss {loss.item():.3f}")
    result = accuracy(model, *test)
    print(f"accuracy after: {result:.1%}")
    return result


if __name__ == "__main__":
    main()
