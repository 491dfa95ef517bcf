"""The tables of docs/scaling.md: what the simulator predicts from 8 to 4096 GPUs: python -m bench.scaling

Rates of one GPU are those measured on an H100 (muon_kernels/distributed/costs.py). Links are assumptions: HOST_LINK
within a host of 8 GPUs, NETWORK_LINK for everything, also within hosts, as soon as there are several.
"""

from __future__ import annotations

from collections.abc import Iterator

from muon_kernels.distributed.costs import HARDWARE, Hardware
from muon_kernels.distributed.models import MODELS
from muon_kernels.distributed.simulate import Prediction, model_plan, simulate

from .floors import STEPS

HOST, HOST_LINK, NETWORK_LINK = 8, 3e11, 4.5e10
SHARDS = {"llama-8b": 64, "llama-70b": 256, "llama-405b": 512}
"""Ranks of an HSDP replica."""

WORLDS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def predict(model: str, sides: tuple[int, ...], layout: str) -> Prediction:
    """A step with float32 parameters, gradients and momenta."""
    world = 1
    for side in sides:
        world *= side
    rates: Hardware = HARDWARE["cuda"]._replace(link=HOST_LINK if world <= HOST else NETWORK_LINK)
    made = model_plan(MODELS[model], sides, layout, rates, STEPS)
    return simulate(made, steps=STEPS, hardware=rates)


def rows(model: str) -> Iterator[tuple[str, ...]]:
    """Of one model's table: FSDP2 over all ranks, and HSDP as soon as there are several replicas."""
    alone = predict(model, (1,), "fsdp").step
    for world in WORLDS:
        cells = [str(world)]
        shards = SHARDS[model]
        for sides, layout in (((world,), "fsdp"), ((world // shards, shards), "hsdp")):
            if sides[0] < 2:
                cells += ["–"] * 3
                continue
            found = predict(model, sides, layout)
            cells += [f"{found.step * 1e3:.3g}", f"{alone / (world * found.step):.2f}", found.bound]
        yield tuple(cells)


def main() -> None:
    """Prints markdown."""
    for model, shards in SHARDS.items():
        biggest = predict(model, (1,), "fsdp")
        print(f"\n## {model}: {biggest.step:.3g} s on one GPU, largest matrix {biggest.largest * 1e3:.3g} ms\n")
        print(f"| GPUs | FSDP2, ms | efficiency | bound by | HSDP, replicas of {shards}, ms | efficiency | bound by |")
        print("|---|---:|---:|---|---:|---:|---|")
        for cells in rows(model):
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
