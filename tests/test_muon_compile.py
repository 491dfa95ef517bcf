"""torch.compile of a whole step, and of a training step with it inside: the parameters that it has without."""

import pytest
import torch
from optimizers import make_params, set_grads
from torch import nn

from muon_kernels import Muon, param_groups_for
from muon_kernels.variants import NorMuon

pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`-wrapped function")

SHAPES = [(12, 8), (5, 10), (4, 6, 2), (15, 8)]


@pytest.fixture(autouse=True)
def _compiled_anew():
    torch.compiler.reset()


def optimizer_of(params, lr, options):
    plain, flattened, fused = params[:2], params[2:3], params[3:]
    groups = [{"params": plain}, {"params": flattened, "layout": "flatten"}, {"params": fused, "layout": "qkv"}]
    return Muon(groups, lr=lr, ns_steps=2, **options)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),
        (torch.float32, {"compute_dtype": torch.float16, "normalizer": NorMuon(), "max_workspace_bytes": 1}),
        (torch.bfloat16, {"master_dtype": torch.float32, "weight_decay_rule": "cautious"}),
        (torch.float32, {"preconditioning": "aol", "ns_coefficients": "turbo"}),
    ],
)
def test_a_step_is_one_graph(dtype, options):
    """Bitwise the eager step, with a learning rate and parameters that change in between; nothing is compiled anew once
    the state is there."""
    rate = torch.tensor(0.1)
    eager, compiled = make_params(dtype, SHAPES), make_params(dtype, SHAPES)
    reference, optimizer = (optimizer_of(params, rate, options) for params in (eager, compiled))
    step = torch.compile(optimizer.step, fullgraph=True, backend="aot_eager")
    for i in range(4):
        rate.fill_(0.1 / (i + 1))
        for params in (eager, compiled):
            set_grads(params, i)
            with torch.no_grad():
                params[1].mul_(1.5)
        reference.step()
        with torch.compiler.set_stance("fail_on_recompile" if i > 1 else "default"):
            step()
        for mine, other in zip(compiled, eager, strict=True):
            assert torch.equal(mine, other)
            for key, value in reference.state[other].items():
                assert torch.equal(optimizer.state[mine][key], value)


def test_a_training_step():
    """Forward, backward and a step of both kinds of groups in one compiled function."""

    def model_and_optimizer():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4))
        return model, Muon(param_groups_for(model), lr=torch.tensor(0.02), ns_steps=2)

    def train_step(model, optimizer, x, labels):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    eager, compiled = model_and_optimizer(), model_and_optimizer()
    compiled_step = torch.compile(train_step, backend="aot_eager")
    for _ in range(3):
        batch = torch.randn(8, 12), torch.randint(4, (8,))
        assert torch.equal(compiled_step(*compiled, *batch), train_step(*eager, *batch))
    for mine, other in zip(compiled[0].parameters(), eager[0].parameters(), strict=True):
        assert torch.equal(mine, other)
