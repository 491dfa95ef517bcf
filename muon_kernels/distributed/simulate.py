"""Predicts a step from its plan: python -m muon_kernels.distributed.simulate --model llama-70b --mesh 32x8 --link 45"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .costs import HARDWARE, Hardware, ns_seconds
from .layout import Mesh, Parameter, Placement, elements
from .models import MODELS, Transformer, is_row_wise
from .plan import DEFAULT_WAVE_BYTES, Plan, plan
from .traffic import moved

LAYOUTS = ("fsdp", "hsdp", "tp", "ddp")

MANY_PEERS = 512


@dataclass(frozen=True)
class Prediction:
    """Seconds of one step, and what they are made of.

    step: with exchanges under way while chains run, as `BucketStep` runs them.
    chains: of the rank that has the most; mean_chains: on average; largest: of the costliest matrix by itself.
    exchanges: if nothing else ran. elementwise: of the rank that has the most.
    sent: bytes of the rank that sends the most.
    """

    step: float
    chains: float
    mean_chains: float
    largest: float
    exchanges: float
    elementwise: float
    sent: float

    @property
    def bound(self) -> str:
        """What takes most of the step."""
        if max(self.exchanges, self.elementwise) > self.chains:
            return "exchanges" if self.exchanges > self.elementwise else "elementwise passes"
        return "the largest matrix" if self.largest > 0.9 * self.chains > 1.1 * self.mean_chains else "chains"


def simulate(made: Plan, *, steps: int, hardware: Hardware, storage_size: int = 4) -> Prediction:
    """A prediction by rates: every exchange takes as long as its busiest rank, every wave as its busiest owner.

    Args:
        steps: length of the Newton-Schulz chain.
        hardware: rates; unless `hardware.measured` says where they were measured, the result is uncalibrated.
        storage_size: bytes of an element of parameters, gradients and momenta.
    """
    # The prologue reads gradient and momentum and writes momentum and result; apply reads both, writes the parameter.
    prologue, apply = 3 * storage_size + made.element_size, 2 * storage_size + made.element_size
    ranks = made.mesh.size
    traffic = np.zeros((made.waves, 3, 2, ranks))
    chains, elementwise = np.zeros((made.waves, ranks)), np.zeros((made.waves, ranks))
    for a in made.assignments:
        traffic[a.wave] += moved(made, a) * made.element_size
        seconds = ns_seconds(a.matrix.rows, a.matrix.cols, steps, hardware)
        chains[a.wave, made.owners(a)] += seconds
        parameter = made.parameters[a.parameter]
        for placements, size in ((parameter.state, prologue), (parameter.param, apply)):
            elementwise[a.wave] += elements(parameter, a.matrix, placements, made.mesh) * size / hardware.memory
    chains += hardware.chain_seconds * (chains > 0)
    fixed = hardware.collective_seconds + hardware.peer_seconds * (ranks - 1)
    transfers = traffic.max(axis=(2, 3), initial=0) / hardware.link
    transfers += fixed * (transfers > 0)
    busy = (chains + elementwise).max(axis=1, initial=0)
    return Prediction(
        step=_pipelined(transfers, busy),
        chains=float(chains.sum(axis=0).max(initial=0)),
        mean_chains=float(chains.sum() / ranks),
        largest=hardware.chain_seconds
        + max((ns_seconds(a.matrix.rows, a.matrix.cols, steps, hardware) for a in made.assignments), default=0.0),
        exchanges=float(transfers.sum()),
        elementwise=float(elementwise.sum(axis=0).max(initial=0)),
        sent=float(traffic[:, :, 0].sum(axis=(0, 1)).max(initial=0)),
    )


def _pipelined(transfers: np.ndarray, busy: np.ndarray) -> float:
    """One link and one processor, in the order in which `BucketStep` uses them."""
    link = processor = 0.0
    gathered = 0.0
    pending: tuple[float, float] | None = None  # when a wave's results are scattered, and the seconds of its copy
    for wave, (gather, scatter, copy) in enumerate(transfers):
        if wave == 0:
            link = gathered = link + gather
        here = gathered
        if wave + 1 < len(transfers):
            link = gathered = link + transfers[wave + 1][0]
        processor = max(processor, here) + busy[wave]
        link = max(link, processor) + scatter
        scattered = link
        if pending is not None:
            link += pending[1]
        pending = (scattered, copy)
    return max(processor, link + (pending[1] if pending else 0.0))


def model_plan(model: Transformer, sides: Sequence[int], layout: str, hardware: Hardware, steps: int) -> Plan:
    """A plan for a model whose updates travel in 16 bit.

    Args:
        sides: of the mesh; "hsdp" copies along the first and cuts along the last, "tp" cuts rows along the first, by
            FSDP2, after it cut columns or rows along the last; the others take them as one.
    """
    mesh = Mesh.grid(*sides) if layout in ("hsdp", "tp") else Mesh.grid(math.prod(sides))
    if layout in ("hsdp", "tp") and len(sides) != 2:
        raise ValueError(f"layout {layout!r} needs a mesh of two sides, got {'x'.join(map(str, sides))}")
    parameters = []
    for name, shape in model.shapes().items():
        placements: tuple[Placement, ...] = (Placement(0),)
        if layout == "ddp":
            placements = (Placement(),)
        elif layout == "hsdp":
            placements = (Placement(), Placement(0))
        elif layout == "tp":
            row_wise = (Placement(0), Placement(1))
            placements = row_wise if is_row_wise(name) else (Placement(0, sides[1]), Placement(0))
        parameters.append(Parameter(name, shape, placements, placements, ((shape[0],), (shape[1],))))
    return plan(mesh, parameters, steps=steps, element_size=2, hardware=hardware, wave_bytes=DEFAULT_WAVE_BYTES)


def report(made: Plan, predicted: Prediction, hardware: Hardware) -> str:
    """The prediction as text."""
    kinds = [a.kind for a in made.assignments]
    balance = predicted.chains / predicted.mean_chains if predicted.mean_chains else 1.0
    lines = [
        f"matrices      {len(kinds)} ({', '.join(f'{kinds.count(k)} {k}' for k in dict.fromkeys(kinds))})",
        f"ranks         {made.mesh.size}, waves {made.waves}",
        f"step          {predicted.step * 1e3:.3g} ms, bound by {predicted.bound}",
        f"chains        {predicted.chains * 1e3:.3g} ms on the busiest rank, {balance:.3g} times the mean; "
        f"largest matrix {predicted.largest * 1e3:.3g} ms",
        f"exchanges     {predicted.exchanges * 1e3:.3g} ms, {predicted.sent / 2**20:.4g} MiB sent by the busiest rank",
        f"elementwise   {predicted.elementwise * 1e3:.3g} ms",
    ]
    if any(a.gathers for a in made.assignments) and made.mesh.size > MANY_PEERS:
        lines.append(f"warning: {made.mesh.size} peers in one all-to-all; more than {MANY_PEERS} have not been tried")
    lines.append(f"rates         {hardware.measured or 'UNCALIBRATED, orders of magnitude that nobody measured'}")
    lines.append(
        f"assumed       {hardware.link / 1e9:g} GB/s a rank, {hardware.collective_seconds * 1e6:g} us a collective"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m muon_kernels.distributed.simulate", description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), required=True)
    parser.add_argument("--mesh", required=True, help="sides, such as 256 or 32x8")
    parser.add_argument("--layout", choices=LAYOUTS, default="fsdp")
    parser.add_argument("--hardware", choices=sorted(HARDWARE), default="cuda")
    parser.add_argument("--link", type=float, help="GB/s that a rank sends; default: the hardware's")
    parser.add_argument("--tflops", type=float, help="TFLOP/s of a chain; default: the hardware's, as measured")
    parser.add_argument("--steps", type=int, default=5, help="length of the Newton-Schulz chain")
    options = parser.parse_args(arguments)
    try:
        sides = [int(side) for side in options.mesh.split("x")]
        if min(sides) < 1 or options.steps < 1 or any(x is not None and x <= 0 for x in (options.link, options.tflops)):
            raise ValueError("every number must be positive")
        hardware = HARDWARE[options.hardware]
        if options.link is not None:
            hardware = hardware._replace(link=options.link * 1e9)
        if options.tflops is not None:
            hardware = hardware._replace(ns_flops=options.tflops * 1e12, measured="")
        made = model_plan(MODELS[options.model], sides, options.layout, hardware, options.steps)
    except ValueError as error:
        parser.error(str(error))
    print(report(made, simulate(made, steps=options.steps, hardware=hardware), hardware))


if __name__ == "__main__":
    main()
