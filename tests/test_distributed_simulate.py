"""The predicted step: bounds that hold at any rates, a case by hand, and the command line."""

from pathlib import Path

import numpy as np
import pytest

from bench import calibrate, scaling
from muon_kernels.distributed import simulate as module
from muon_kernels.distributed.costs import HARDWARE, Hardware, ns_flops
from muon_kernels.distributed.layout import Mesh, Parameter, Placement
from muon_kernels.distributed.models import MODELS
from muon_kernels.distributed.plan import plan

RESULTS = Path(__file__).parents[1] / "bench" / "results"

RATES = Hardware(
    ns_flops=1e12,
    ns_elements=1e9,
    chain_seconds=1e-4,
    link=1e9,
    memory=1e10,
    collective_seconds=0.0,
    peer_seconds=0.0,
)


def test_two_equal_matrices_on_two_ranks_by_hand():
    rows = (Placement(0),)
    params = [Parameter(f"{i}", (64, 128), rows, rows, ((64,), (128,))) for i in range(2)]
    made = plan(Mesh.grid(2), params, steps=5, element_size=2, hardware=RATES)
    predicted = module.simulate(made, steps=5, hardware=RATES)
    chain = (14 * 64**3 + 6 * 64**2 * 128) / 1e12 + (64 * 128 + 64 * 64) / 1e9 + 1e-4
    half = 64 * 128 / 2 * 2 / 1e9
    elementwise = 64 * 128 * 24 / 1e10
    assert (predicted.chains, predicted.mean_chains) == pytest.approx((chain, chain))
    assert predicted.sent == 2 * 64 * 128
    assert predicted.step == pytest.approx(half + chain + elementwise + half)
    in_16_bit = module.simulate(made, steps=5, hardware=RATES, storage_size=2)
    assert in_16_bit.elementwise == pytest.approx(64 * 128 * 14 / 1e10)


def test_fewest_flops_of_a_chain():
    assert ns_flops(64, 64, 5) == 20 * 64**3 and ns_flops(64, 256, 5) == ns_flops(256, 64, 5) == 38 * 64**3
    assert ns_flops(64, 256, 2) == 26 * 64**3


def test_what_bounds_a_step():
    made = module.model_plan(MODELS["gpt2"], (8,), "ddp", RATES, 5)
    rates = {"exchanges": {"link": 1e3}, "elementwise passes": {"memory": 1e3}, "chains": {"ns_flops": 1e3}}
    for bound, change in rates.items():
        fast = RATES._replace(ns_flops=1e15, ns_elements=1e15, chain_seconds=0.0, link=1e15, memory=1e15)
        assert module.simulate(made, steps=5, hardware=fast._replace(**change)).bound == bound
    many = module.model_plan(MODELS["gpt2"], (1024,), "fsdp", RATES, 5)
    assert module.simulate(many, steps=5, hardware=RATES._replace(link=1e12)).bound == "the largest matrix"


def test_rates_are_those_of_the_measured_table():
    """One column of a results file: twelve shapes and batches from 0.09 to 18 ms, and small chains, which cost less."""
    measured = calibrate.captured_times(RESULTS / "orthogonalize-h100.json", "ours-cuda")
    chain, flops, elements, errors = calibrate.fit(measured)
    rates = HARDWARE["cuda"]
    assert (rates.chain_seconds, rates.ns_flops, rates.ns_elements) == pytest.approx((chain, flops, elements), rel=2e-3)
    small = np.array([calibrate.is_small(shape) for shape, _ in measured])
    assert len(errors) == 13 and abs(errors[~small]).max() < 0.042
    assert small.sum() == 1 and errors[small] > 0


@pytest.mark.parametrize(("ranks", "layouts"), [(2, 2), (4, 4)])
def test_measured_steps_of_a_large_model(ranks, layouts):
    """On H100s. Several GPUs take longer than predicted: products lose time beside exchanges."""
    found = [c for c in scaling.compare(RESULTS / f"distributed-h100-x{ranks}.json") if c.row.cell.startswith("llama")]
    alone, *shared = (c.error for c in found)
    assert abs(alone) < 0.05
    assert len(shared) == layouts and -0.1 < min(shared) <= max(shared) < 0


@pytest.mark.parametrize("ranks", [2, 4])
def test_measured_steps_of_some_of_its_layers(ranks):
    """On H200s, of the whole model and of four of its layers, under names that the simulator's own command lacks."""
    found = scaling.compare(RESULTS / f"distributed-h200-x{ranks}-889439c.json")
    short = [c.error for c in found if c.row.cell.startswith("4 layers of llama-8b")]
    long = [c.error for c in found if c.row.cell.startswith("llama-8b")]
    assert len(short) == len(long) == ranks + 1
    assert max(map(abs, short + long)) < 0.08


@pytest.mark.parametrize("layout", module.LAYOUTS)
@pytest.mark.parametrize("model", ["gpt2", "llama-8b"])
def test_no_step_is_faster_than_its_parts(layout, model):
    hardware = HARDWARE["cuda"]
    made = module.model_plan(MODELS[model], (4, 2), layout, hardware, 5)
    predicted = module.simulate(made, steps=5, hardware=hardware)
    assert predicted.step >= max(predicted.chains, predicted.largest, predicted.elementwise, predicted.exchanges * 0.99)
    assert predicted.step <= 1.01 * (predicted.chains * made.waves + predicted.exchanges + predicted.elementwise * 2)


def test_waves_overlap():
    """With many waves exchanges hide behind chains, all but the first and the last."""
    hardware = RATES._replace(memory=1e15)
    made = module.model_plan(MODELS["gpt2"], (2,), "fsdp", hardware, 5)
    many = plan(made.mesh, made.parameters, steps=5, element_size=2, hardware=hardware, wave_bytes=2 * 2**20)
    assert many.waves > 4
    one, overlapped = (module.simulate(m, steps=5, hardware=hardware).step for m in (made, many))
    assert overlapped < one


def test_one_rank_exchanges_nothing():
    made = module.model_plan(MODELS["gpt2"], (1,), "fsdp", RATES, 5)
    predicted = module.simulate(made, steps=5, hardware=RATES)
    assert predicted.exchanges == predicted.sent == 0
    flops, elements = sum(ns_flops(*shape, 5) for shape in MODELS["gpt2"].shapes().values()), 12 * 12 * 768**2
    gram = 12 * 6 * 768**2
    chains = flops / 1e12 + (elements + gram) / 1e9 + made.waves * 1e-4
    assert predicted.step == pytest.approx(chains + 24 * elements / 1e10)


def test_models_have_the_elements_that_they_are_named_for():
    counts = {name: sum(r * c for r, c in model.shapes().values()) for name, model in MODELS.items()}
    assert counts["gpt2"] == 12 * 12 * 768**2
    assert [round(counts[f"llama-{n}b"] / 1e9) for n in (8, 70, 405)] == [7, 68, 402]


def test_command_line(capsys):
    module.main(["--model", "llama-70b", "--mesh", "32x8", "--link", "45"])
    text = capsys.readouterr().out
    assert "ranks         256" in text and "UNCALIBRATED" not in text and "one H100" in text and "bound by" in text
    assert "assumed       45 GB/s a rank" in text
    module.main(["--model", "gpt2", "--mesh", "1024", "--tflops", "100"])
    text = capsys.readouterr().out
    assert "warning: 1024 peers" in text and "UNCALIBRATED" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "gpt2", "--mesh", "2x0"], "every number must be positive"),
        (["--model", "gpt2", "--mesh", "8", "--layout", "hsdp"], "'hsdp' needs a mesh of two sides, got 8"),
        (["--model", "gpt2", "--mesh", "8", "--link", "-1"], "every number must be positive"),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    with pytest.raises(SystemExit):
        module.main(arguments)
    assert message in capsys.readouterr().err
