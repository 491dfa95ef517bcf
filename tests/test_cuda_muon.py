"""The optimizer and `orthogonalize` on a GPU: the CPU's results, capture, devices, and who ran."""

import kernel_fuzz
import pytest
import torch
from optimizers import make_params, set_grads
from test_ops import calls
from torch import nn

import muon_kernels
from muon_kernels import Muon, dispatch, orthogonalize, param_groups_for
from muon_kernels.coefficients import resolve_coefficients
from muon_kernels.orthogonalize import resolve_method
from muon_kernels.testing import SPECTRA, assert_error_ratio, matrix_with_spectrum, polynomial_oracle
from muon_kernels.variants import Int8Momentum

pytestmark = pytest.mark.gpu

STORED = [
    (torch.float32, {}),
    (torch.bfloat16, {"momentum_store": Int8Momentum()}),
    (torch.bfloat16, {"rounding": "stochastic"}),
]
"""Dtype of the parameters and how they and their momenta are stored."""

SECOND_DEVICE = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


def gpu_params(dtype=torch.float32, device="cuda"):
    return [nn.Parameter(p.detach().to(device)) for p in make_params(dtype)]


def run_gpu(optimizer, steps, first=0):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(first, first + steps):
        set_grads(params, step)
        optimizer.step()
    return [p.detach().cpu() for p in params]


def on_device(value, device="cuda"):
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return [on_device(v) for v in value] if isinstance(value, list) else value


def test_explain_names_the_kernels():
    lines = {line.split()[0]: line for line in muon_kernels.explain().splitlines()[2:]}
    for op in ("prologue", "apply"):
        assert lines[op].split()[1] == "cuda"


@pytest.mark.parametrize(
    ("name", "args", "kwargs"), [pytest.param(*c, id=f"{c[0]}-{i}") for i, c in enumerate(calls())]
)
def test_opcheck(name, args, kwargs):
    args = [on_device(a) for a in args]
    torch.library.opcheck(getattr(torch.ops.muon_kernels, name).default, tuple(args), kwargs)


@pytest.mark.parametrize("method", ["standard", "gram", "svd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_equals_cpu(dtype, method):
    """In the same compute dtype; both differ from the exact trajectory by rounding."""
    options = {"lr": 0.05, "method": method, "compute_dtype": torch.float32}
    params = make_params(dtype)
    optimizer = Muon(params, **options)
    for step in range(5):
        set_grads(params, step)
        optimizer.step()
    # TF32 would be another precision than the one that was asked for.
    assert not torch.backends.cuda.matmul.allow_tf32
    for actual, expected in zip(run_gpu(Muon(gpu_params(dtype), **options), 5), params, strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        assert (actual.double() - expected.double()).norm() <= tolerance * expected.double().norm()


@pytest.mark.parametrize("preset", ["original", "quintic", "polar_express_1.05"])
@pytest.mark.parametrize("shape", [(256, 256), (256, 1024), (1024, 256), (200, 333)])
def test_default_precision_over_the_zoo(shape, preset):
    """float16 on the GPU errs no more than the plain bfloat16 chain that torch.optim.Muon runs; under Polar Express the
    Gram chain up to three times as much (see test_errs_no_more_than_plain_torch in tests/test_cuda_chains.py)."""
    rows = resolve_coefficients(preset, 5)
    gram = resolve_method("auto", *shape, len(rows), torch.float16) == "gram"
    factor = 3.0 if gram and preset.startswith("polar_express") else 1.0
    for spectrum in SPECTRA.values():
        g = matrix_with_spectrum(*shape, spectrum(min(shape)))
        x = (g / g.norm()).cuda().bfloat16()
        x = x.mT if shape[0] > shape[1] else x
        for a, b, c in rows:
            g2 = x @ x.mT
            x = torch.addmm(x, torch.addmm(g2, g2, g2, beta=b, alpha=c), x, beta=a)
        plain = x.mT if shape[0] > shape[1] else x
        out = orthogonalize(g.cuda().float(), ns_coefficients=preset)
        assert_error_ratio(out.cpu(), plain.cpu(), polynomial_oracle(g, rows), factor=factor, floor=2e-2)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_gradient_spoils_only_its_own_parameter(bad):
    clean, spoiled = gpu_params(), gpu_params()
    for params in (clean, spoiled):
        set_grads(params, 0)
    spoiled[1].grad[0, 0] = bad
    for params in (clean, spoiled):
        Muon(params, lr=0.1).step()
    assert spoiled[1].isnan().all()
    assert all(torch.equal(a, b) for i, (a, b) in enumerate(zip(clean, spoiled, strict=True)) if i != 1)


@pytest.mark.parametrize(("dtype", "options"), STORED)
def test_graph_capture_follows_gradients_and_learning_rate(dtype, options):
    """One capture, replayed with other gradients and another lr, equals the eager steps bitwise."""
    eager_params, params = gpu_params(dtype), gpu_params(dtype)
    aux = [nn.Parameter(torch.ones(33, dtype=dtype, device="cuda")) for _ in range(2)]
    for p in (*eager_params, *params, *aux):
        p.grad = torch.zeros_like(p)
    lr = torch.tensor(0.1, device="cuda")

    def optimizer_of(matrices, vector):
        return Muon([{"params": matrices}, {"params": [vector], "use_muon": False}], lr=lr, **options)

    eager, captured = optimizer_of(eager_params, aux[0]), optimizer_of(params, aux[1])
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for optimizer in (eager, captured):
            optimizer.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for step in range(4):
        lr.fill_(0.1 / (step + 1))
        for mine, other in zip((*params, aux[1]), (*eager_params, aux[0]), strict=True):
            mine.grad.normal_(generator=torch.Generator("cuda").manual_seed(step))
            other.grad.copy_(mine.grad)
        graph.replay()
        eager.step()
        torch.cuda.synchronize()
        for mine, other in zip((*params, aux[1]), (*eager_params, aux[0]), strict=True):
            assert torch.equal(mine, other)


def test_graph_capture_of_a_training_step():
    """Forward, backward and step in one CUDA graph follow the batches and the learning rate as eager training does."""
    rate = torch.tensor(0.02, device="cuda")
    batch, labels = torch.empty(32, 64, device="cuda"), torch.empty(32, dtype=torch.int64, device="cuda")

    def training():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 128), nn.LayerNorm(128), nn.Linear(128, 8))
        optimizer = Muon(param_groups_for(model.cuda()), lr=rate)

        def train_step():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch), labels)
            loss.backward()
            optimizer.step()
            return loss

        return list(model.parameters()), train_step

    def next_batch(step):
        generator = torch.Generator("cuda").manual_seed(step)
        batch.normal_(generator=generator)
        labels.random_(8, generator=generator)
        rate.fill_(0.02 / (step + 1))

    eager_params, eager_step = training()
    params, train_step = training()
    next_batch(0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            eager_step()
            train_step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = train_step()
    for step in range(1, 5):
        next_batch(step)
        graph.replay()
        torch.testing.assert_close(loss, eager_step(), rtol=1e-3, atol=1e-3)
        for mine, other in zip(params, eager_params, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)  # a step moves some by 4e-3 and more


def test_a_compiled_step():
    """In float16, whose chains end in the product that is applied to the parameters, bitwise the eager step."""
    torch.compiler.reset()
    rate = torch.tensor(0.1, device="cuda")
    eager, compiled = gpu_params(), gpu_params()
    reference, optimizer = Muon(eager, lr=rate), Muon(compiled, lr=rate)
    step = torch.compile(optimizer.step, fullgraph=True, backend="aot_eager")
    for i in range(3):
        rate.fill_(0.1 / (i + 1))
        for params in (eager, compiled):
            set_grads(params, i)
        reference.step()
        step()
        assert all(torch.equal(a, b) for a, b in zip(compiled, eager, strict=True))


@pytest.mark.parametrize(("dtype", "options"), STORED)
def test_no_synchronisation(dtype, options):
    """A step enqueues and returns: nothing on the host waits for the device."""
    params = gpu_params(dtype)
    optimizer = Muon(params, lr=torch.tensor(0.1, device="cuda"), **options)
    set_grads(params, 0)
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_two_streams():
    expected = run_gpu(Muon(gpu_params(), lr=0.1), 3)
    sets = [gpu_params(), gpu_params()]
    optimizers = [Muon(params, lr=0.1) for params in sets]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    for step in range(3):
        for params, optimizer, stream in zip(sets, optimizers, streams, strict=True):
            with torch.cuda.stream(stream):
                set_grads(params, step)
                optimizer.step()
    torch.cuda.synchronize()
    for params in sets:
        assert all(torch.equal(p.detach().cpu(), e) for p, e in zip(params, expected, strict=True))


def test_version_counter_sees_the_step():
    params = gpu_params()[:1]
    set_grads(params, 0)
    loss = (params[0] * params[0]).sum()
    Muon(params).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_grad_scaler():
    scaled, plain = gpu_params(), gpu_params()
    optimizer, reference = Muon(scaled, lr=0.1), Muon(plain, lr=0.1)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    scaler.scale(torch.zeros((), device="cuda", requires_grad=True))
    set_grads(plain, 0)
    reference.step()
    for spoil in (True, False):
        set_grads(scaled, 0, scale=scaler.get_scale())
        if spoil:
            before = [p.detach().clone() for p in scaled]
            scaled[0].grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        expected = before if spoil else plain
        assert all(torch.equal(a, b) for a, b in zip(scaled, expected, strict=True))


def test_a_gradient_left_on_the_cpu():
    p = nn.Parameter(torch.ones(4, 6))
    p.grad = torch.ones(4, 6)
    p.data = p.data.cuda()
    with pytest.raises(RuntimeError, match=r"must match its parameter \(\[4, 6\] on cuda:0\), got \[4, 6\] on cpu"):
        Muon([p]).step()


def test_the_state_moves_between_cpu_and_gpu():
    params = make_params(torch.float32)
    source = Muon(params, lr=0.1, compute_dtype=torch.float32)
    set_grads(params, 0)
    source.step()
    target = Muon([nn.Parameter(p.detach().cuda()) for p in params], lr=0.1, compute_dtype=torch.float32)
    target.load_state_dict(source.state_dict())
    set_grads(params, 1)
    source.step()
    for actual, expected in zip(run_gpu(target, 1, first=1), params, strict=True):
        torch.testing.assert_close(actual, expected.detach(), rtol=1e-4, atol=1e-5)


@SECOND_DEVICE
def test_another_device_than_the_current_one():
    expected = run_gpu(Muon(gpu_params(), lr=0.1), 2)
    actual = run_gpu(Muon(gpu_params(device="cuda:1"), lr=0.1), 2)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize(
    "options", [{}, {"method": "squaring"}, {"layout": "rows:1", "max_workspace_bytes": 1}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wave_in_one_call_has_the_bits_of_its_ops(dtype, options, monkeypatch):
    whole = dispatch.whole
    taken = []

    def spy(name, lists, request):
        step = whole(name, lists, request)
        taken.append(step is not None)
        return step

    results = []
    for chosen in (spy, lambda name, lists, request: None):
        monkeypatch.setattr(dispatch, "whole", chosen)
        results.append(run_gpu(Muon(gpu_params(dtype), lr=0.1, **options), 3))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert set(taken) == {torch.cuda.get_device_capability() == (9, 0)}


def test_random_calls():
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs compute capability 9.0")
    kernel_fuzz.run(0, 300, "cuda", "cuda")


def test_waves_bound_the_memory():
    shapes = [(512, 512)] * 64
    params = [nn.Parameter(torch.randn(s, device="cuda")) for s in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    bound = 16 * 2**20
    optimizer = Muon(params, max_workspace_bytes=bound)
    optimizer.step()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    optimizer.step()
    assert torch.cuda.max_memory_allocated() - before <= bound + 2**20
