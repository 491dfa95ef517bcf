"""The predicted step: bounds that hold at any rates, a case by hand, and the command line."""

import pytest

from muon_kernels.distributed import simulate as module
from muon_kernels.distributed.costs import HARDWARE, Hardware, ns_flops
from muon_kernels.distributed.layout import Mesh, Parameter, Placement
from muon_kernels.distributed.models import MODELS
from muon_kernels.distributed.plan import plan

RATES = Hardware(ns_flops=1e12, matrix_seconds=0.0, link=1e9, memory=1e10, collective_seconds=0.0, peer_seconds=0.0)


def test_two_equal_matrices_on_two_ranks_by_hand():
    rows = (Placement(0),)
    params = [Parameter(f"{i}", (64, 128), rows, rows, ((64,), (128,))) for i in range(2)]
    made = plan(Mesh.grid(2), params, steps=5, element_size=2, hardware=RATES)
    predicted = module.simulate(made, steps=5, hardware=RATES)
    chain = 5 * (4 * 64**2 * 128 + 2 * 64**3) / 1e12
    half = 64 * 128 / 2 * 2 / 1e9
    elementwise = 64 * 128 * 24 / 1e10
    assert (predicted.chains, predicted.mean_chains) == pytest.approx((chain, chain))
    assert predicted.sent == 2 * 64 * 128
    assert predicted.step == pytest.approx(half + chain + elementwise + half)


@pytest.mark.parametrize("layout", module.LAYOUTS)
@pytest.mark.parametrize("model", ["gpt2", "llama-8b"])
def test_no_step_is_faster_than_its_parts(layout, model):
    hardware = HARDWARE["cuda"]
    made = module.model_plan(model, (4, 2), layout, hardware, 5)
    predicted = module.simulate(made, steps=5, hardware=hardware)
    assert predicted.step >= max(predicted.chains, predicted.largest, predicted.elementwise, predicted.exchanges * 0.99)
    assert predicted.step <= 1.01 * (predicted.chains * made.waves + predicted.exchanges + predicted.elementwise * 2)


def test_waves_overlap():
    """With many waves exchanges hide behind chains, all but the first and the last."""
    hardware = RATES._replace(memory=1e15)
    made = module.model_plan("gpt2", (2,), "fsdp", hardware, 5)
    many = plan(made.mesh, made.parameters, steps=5, element_size=2, hardware=hardware, wave_bytes=2 * 2**20)
    assert many.waves > 4
    one, overlapped = (module.simulate(m, steps=5, hardware=hardware).step for m in (made, many))
    assert overlapped < one


def test_one_rank_exchanges_nothing():
    made = module.model_plan("gpt2", (1,), "fsdp", RATES, 5)
    predicted = module.simulate(made, steps=5, hardware=RATES)
    assert predicted.exchanges == predicted.sent == 0
    flops = sum(ns_flops(*shape, 5) for shape in MODELS["gpt2"].shapes().values())
    assert predicted.step == pytest.approx(flops / 1e12 + 24 * 12 * 12 * 768**2 / 1e10)


def test_models_have_the_elements_that_they_are_named_for():
    counts = {name: sum(r * c for r, c in model.shapes().values()) for name, model in MODELS.items()}
    assert counts["gpt2"] == 12 * 12 * 768**2
    assert [round(counts[f"llama-{n}b"] / 1e9) for n in (8, 70, 405)] == [7, 68, 402]


def test_command_line(capsys):
    module.main(["--model", "llama-70b", "--mesh", "32x8", "--link", "45"])
    text = capsys.readouterr().out
    assert "ranks         256" in text and "UNCALIBRATED" in text and "bound by" in text
    module.main(["--model", "gpt2", "--mesh", "1024"])
    assert "warning: 1024 peers" in capsys.readouterr().out


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
