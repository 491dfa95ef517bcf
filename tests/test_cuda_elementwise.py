"""The CUDA prologue and apply against float64 oracles on the same rounded inputs, and against the reference op."""

import itertools

import pytest
import torch
from cases import SIZES, assert_rounded_once, randn

from muon_kernels import ops
from muon_kernels.backends import cuda, reference
from muon_kernels.testing import assert_error_ratio, poison

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("on_cuda_backend")]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def transposed(shape, dtype):
    return randn(shape[::-1], dtype).t()


def padded(shape, dtype, pad=5):
    return randn((shape[0], shape[1] + pad), dtype)[:, : shape[1]]


class PrologueCase:
    """Inputs of one call; `run` calls the op on fresh copies of the momenta and checks everything it wrote."""

    def __init__(self, grads, momenta, outs, **options):
        self.grads, self.momenta, self.outs = grads, momenta, outs
        self.options = {"momentum": 0.95, "nesterov": True, "ema": True, "maximize": False} | options
        self.sumsq = torch.empty(len(grads), dtype=torch.float64, device="cuda")

    def call(self):
        poison(*self.outs, self.sumsq)
        ops.prologue(self.grads, self.momenta, self.outs, self.sumsq, **self.options)

    def run_and_check(self):
        old_grads = [g.clone() for g in self.grads]
        old_momenta = [m.double() for m in self.momenta]
        self.call()
        for i, old in enumerate(old_grads):
            assert torch.equal(self.grads[i], old), "gradients must not change"
            self.check(i, old.double(), old_momenta[i])

    def check(self, i, g, old):
        o = self.options
        beta = o["momentum"]
        if o.get("grad_scale") is not None:
            g = g / o["grad_scale"].double()
        if o["maximize"]:
            g = -g
        terms = g.abs() + old.abs()
        assert_rounded_once(self.momenta[i], old * beta + g * (1 - beta if o["ema"] else 1), terms)
        m = self.momenta[i].double()
        update = (g * (1 - beta if o["ema"] else 1) + beta * m) if o["nesterov"] else m
        assert_rounded_once(self.outs[i], update, terms + m.abs())
        squares = self.outs[i].double().square().sum()
        torch.testing.assert_close(self.sumsq[i], squares, rtol=1e-12, atol=0)


def contiguous_case(shapes, grad_dtype, momentum_dtype, out_dtype, **options):
    dtypes = (grad_dtype, momentum_dtype, out_dtype)
    return PrologueCase(*([randn(s, dtype) for s in shapes] for dtype in dtypes), **options)


@pytest.mark.parametrize(
    "dtypes", list(itertools.product(DTYPES, repeat=3)), ids=lambda d: "-".join(str(t)[6:] for t in d)
)
def test_prologue_sizes_and_dtypes(dtypes):
    contiguous_case([(n,) for n in SIZES], *dtypes).run_and_check()


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.95])
def test_prologue_modes(nesterov, ema, momentum):
    contiguous_case(
        [(64, 48), (5, 7)], torch.float32, torch.float32, torch.bfloat16, nesterov=nesterov, ema=ema, momentum=momentum
    ).run_and_check()


@pytest.mark.parametrize("maximize", [False, True])
def test_prologue_grad_scale(maximize):
    scale = torch.tensor([1024.0], device="cuda")
    for dtype in DTYPES:
        contiguous_case(
            [(64, 48), (4097,)], dtype, torch.float32, torch.float16, grad_scale=scale, maximize=maximize
        ).run_and_check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offsets", [(1, 1, 1), (3, 3, 3), (0, 1, 0), (1, 2, 3)])
def test_prologue_alignment(dtype, offsets):
    sizes = (1, 7, 8, 4096, 4097, 6144, 6145, 40000)
    lists = [[randn((n,), dtype, offset) for n in sizes] for offset in offsets]
    PrologueCase(*lists).run_and_check()


MAKERS = {"rows": randn, "padded": padded, "padded by 8": lambda s, d: padded(s, d, 8), "transposed": transposed}


@pytest.mark.parametrize("layouts", list(itertools.product(MAKERS, repeat=3)), ids="-".join)
def test_prologue_layouts(layouts):
    shapes = [(1, 1), (1, 300), (300, 1), (64, 64), (63, 65), (128, 256), (130, 200)]
    dtypes = (torch.bfloat16, torch.float32, torch.bfloat16)
    lists = [[MAKERS[lay](s, d) for s in shapes] for lay, d in zip(layouts, dtypes, strict=True)]
    PrologueCase(*lists).run_and_check()


def test_prologue_writes_nothing_beside_the_tensors():
    shape, dtype = (100, 72), torch.float32
    bases = [torch.full((100, 80), 3.0, device="cuda") for _ in range(2)]
    momentum, out = (base[:, :72] for base in bases)
    PrologueCase([randn(shape, dtype)], [momentum], [out]).run_and_check()
    assert all((base[:, 72:] == 3.0).all() for base in bases)


def test_prologue_expanded_gradient():
    grad = torch.ones((), device="cuda").expand(70, 90)
    PrologueCase([grad], [randn((70, 90), torch.float32)], [randn((70, 90), torch.bfloat16)]).run_and_check()


def test_prologue_channels_last():
    tensors = [randn((8, 6, 3, 3), torch.float32).to(memory_format=torch.channels_last) for _ in range(3)]
    PrologueCase(*([t] for t in tensors)).run_and_check()


def test_prologue_thousands_of_tensors_in_one_call():
    sizes = [(1 + 37 * i % 900,) for i in range(3000)]
    contiguous_case(sizes, torch.float32, torch.float32, torch.bfloat16).run_and_check()


def test_prologue_hundreds_of_strided_tensors_among_dense_ones():
    shapes = [(1 + i % 70, 1 + i % 90) for i in range(1000)]
    make = [padded if i % 2 else randn for i in range(1000)]
    lists = [[f(s, torch.float32) for f, s in zip(make, shapes, strict=True)] for _ in range(3)]
    PrologueCase(*lists).run_and_check()


def test_prologue_more_than_2_to_31_elements(huge_tensors):
    n = 2**31 + 4100
    if torch.cuda.mem_get_info()[0] < 8 * n:
        pytest.skip("needs 16 GiB of free device memory")
    grad, momentum, out = (torch.zeros(n, dtype=torch.bfloat16, device="cuda") for _ in range(3))
    grad[-5:] = 2.0
    sumsq = torch.empty(1, dtype=torch.float64, device="cuda")
    ops.prologue([grad], [momentum], [out], sumsq, momentum=0.5, nesterov=False)
    assert (out[-5:] == 1.0).all() and sumsq.item() == 5.0


def test_prologue_same_bits_whatever_else_is_in_the_list():
    shapes = [(64, 64), (3, 5), (1000, 999), (4097,), (768, 768)]
    case = contiguous_case(shapes, torch.float32, torch.bfloat16, torch.bfloat16)
    before = [m.clone() for m in case.momenta]
    case.call()
    together = [t.clone() for t in (*case.momenta, *case.outs)], case.sumsq.clone()
    for _ in range(2):
        for i, m in enumerate(before):
            case.momenta[i].copy_(m)
            alone = PrologueCase(case.grads[i : i + 1], case.momenta[i : i + 1], case.outs[i : i + 1])
            alone.call()
            assert torch.equal(alone.sumsq[0], together[1][i])
    for now, then in zip((*case.momenta, *case.outs), together[0], strict=True):
        assert torch.equal(now, then)


def test_prologue_found_inf_leaves_momenta_and_zeroes_outs():
    flag = torch.ones(1, device="cuda")
    case = contiguous_case([(300, 70), (5,)], torch.float16, torch.float32, torch.float16, found_inf=flag)
    case.grads[0][0] = torch.inf
    before = [m.clone() for m in case.momenta]
    case.call()
    assert all(map(torch.equal, case.momenta, before))
    assert not any(out.any() for out in case.outs) and not case.sumsq.any()
    flag.zero_()
    case.grads[0][0] = 1.0
    case.run_and_check()


def test_prologue_nan_and_infinity_stay_in_their_tensor():
    case = contiguous_case([(100, 70)] * 3, torch.float32, torch.float32, torch.bfloat16)
    case.grads[0][5, 5] = torch.nan
    case.grads[2][5, 5] = torch.inf
    case.call()
    assert case.sumsq[0].isnan() and case.sumsq[1].isfinite() and not case.sumsq[2].isfinite()
    assert case.outs[0].isnan().sum() == 1 and case.outs[1].isfinite().all()


def test_prologue_on_another_stream():
    case = contiguous_case([(2000, 2000)], torch.float32, torch.float32, torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # work on the wrong stream would overtake this
        case.grads[0].normal_()
        case.run_and_check()
    torch.cuda.current_stream().wait_stream(stream)


def test_prologue_in_a_cuda_graph_sees_new_gradients():
    case = contiguous_case([(100, 70), (4097,)], torch.float32, torch.float32, torch.bfloat16)
    case.call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.prologue(case.grads, case.momenta, case.outs, case.sumsq, **case.options)
    for _ in range(3):
        for g in case.grads:
            g.normal_()
        old = [m.double() for m in case.momenta]
        poison(*case.outs, case.sumsq)
        graph.replay()
        for i, g in enumerate(case.grads):
            case.check(i, g.double(), old[i])


def test_prologue_errs_no_more_than_the_reference():
    g, m = randn((1000, 1000), torch.float32), randn((1000, 1000), torch.float32)
    results = []
    for op in (ops.prologue, reference.prologue):
        momentum, out, sumsq = m.clone(), torch.empty_like(g), torch.empty(1, dtype=torch.float64, device="cuda")
        options = {"nesterov": True, "ema": True, "maximize": False, "grad_scale": None, "found_inf": None}
        op([g], [momentum], [out], sumsq, momentum=0.95, **options)
        results.append((momentum, out))
    new = m.double() * 0.95 + g.double() * 0.05
    for ours, plain, oracle in zip(*results, (new, g.double() * 0.05 + 0.95 * new), strict=True):
        assert_error_ratio(ours, plain, oracle)


# ---- apply ----------------------------------------------------------------------------------------------------------


def check_apply(params, updates, scales, lr, weight_decay=0.1, rate=None, **options):
    rate = float(lr) if rate is None else rate
    old, old_updates = [p.double() for p in params], [u.clone() for u in updates]
    ops.apply(params, updates, lr=lr, weight_decay=weight_decay, scales=scales, **options)
    for p, p_old, u, u_old, scale in zip(params, old, updates, old_updates, scales, strict=True):
        assert torch.equal(u, u_old)
        step = rate * scale * u_old.double()
        assert_rounded_once(p, p_old * (1 - rate * weight_decay) - step, p_old.abs() + step.abs())


@pytest.mark.parametrize(
    "dtypes", list(itertools.product(DTYPES, repeat=2)), ids=lambda d: "-".join(str(t)[6:] for t in d)
)
def test_apply_sizes_and_dtypes(dtypes):
    params, updates = ([randn((n,), dtype) for n in SIZES] for dtype in dtypes)
    check_apply(params, updates, [0.2 * (1 + i) for i in range(len(SIZES))], torch.tensor(0.02, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_apply_lr_tensors(dtype, device):
    lr = torch.tensor(0.013, dtype=dtype, device=device)
    check_apply([randn((70, 90), torch.float32)], [randn((70, 90), torch.bfloat16)], [0.7], lr)


@pytest.mark.parametrize("layouts", list(itertools.product(MAKERS, repeat=2)), ids="-".join)
def test_apply_layouts(layouts):
    shapes = [(1, 1), (1, 300), (300, 1), (64, 64), (63, 65), (130, 200)]
    params, updates = ([MAKERS[lay](s, torch.bfloat16) for s in shapes] for lay in layouts)
    check_apply(params, updates, [0.5] * len(shapes), 0.02)


@pytest.mark.parametrize("offsets", [(1, 1), (0, 1), (3, 2)])
def test_apply_alignment(offsets):
    params, updates = ([randn((n,), torch.bfloat16, o) for n in (1, 7, 8, 4097, 40000)] for o in offsets)
    check_apply(params, updates, [0.5] * 5, 0.02)


def test_apply_thousands_of_tensors_in_one_call():
    sizes = [(1 + 37 * i % 900,) for i in range(3000)]
    params, updates = ([randn(s, torch.float32) for s in sizes] for _ in range(2))
    check_apply(params, updates, [0.1 + i / 3000 for i in range(3000)], 0.02)


def test_apply_found_inf_changes_nothing():
    params, updates = [randn((300, 70), torch.bfloat16)], [randn((300, 70), torch.bfloat16)]
    before = params[0].clone()
    flag = torch.ones(1, device="cuda")
    ops.apply(params, updates, lr=0.1, weight_decay=0.1, scales=[1.0], found_inf=flag)
    assert torch.equal(params[0], before)
    flag.zero_()
    check_apply(params, updates, [1.0], 0.1, found_inf=flag)


def test_apply_in_a_cuda_graph_sees_a_new_learning_rate():
    lr = torch.tensor(0.1, device="cuda")
    params, updates = [randn((300, 70), torch.float32)], [randn((300, 70), torch.float32)]
    graph = torch.cuda.CUDAGraph()
    ops.apply(params, updates, lr=lr, weight_decay=0.1, scales=[0.3])
    with torch.cuda.graph(graph):
        ops.apply(params, updates, lr=lr, weight_decay=0.1, scales=[0.3])
    for rate in (0.5, 0.01):
        lr.fill_(rate)
        old = params[0].double()
        graph.replay()
        step = float(lr) * 0.3 * updates[0].double()
        assert_rounded_once(params[0], old * (1 - float(lr) * 0.1) - step, old.abs() + step.abs())


# ---- what the kernels refuse ----------------------------------------------------------------------------------------


def test_refusals_name_what_is_wrong():
    device = torch.device("cuda", torch.cuda.current_device())
    wide = torch.zeros(3, device="cuda", dtype=torch.float64)
    assert cuda.unavailable_reason("prologue", device, ()) is None
    assert "float64" in cuda.unavailable_reason("prologue", device, [[wide]])
    one = torch.zeros(3, device="cuda")
    with pytest.raises(TypeError, match="params"):
        cuda.apply([wide], [one], lr=torch.tensor(0.1), weight_decay=0.0, scales=[1.0], found_inf=None)
    with pytest.raises(TypeError, match="lr"):
        ops.apply([one], [one.clone()], lr=torch.zeros((), device="cuda", dtype=torch.float16), scales=[1.0])
    with pytest.raises(ValueError, match="found_inf"):
        ops.apply([one], [one.clone()], lr=0.1, scales=[1.0], found_inf=torch.zeros(1, device="cuda").double())
    cube = torch.zeros(8, 8, 8, device="cuda")[:5, :5, :5]
    with pytest.raises(ValueError, match="params and updates at index 0"):
        ops.apply([cube], [torch.zeros(5, 5, 5, device="cuda")], lr=0.1, scales=[1.0])
