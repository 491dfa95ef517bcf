"""What reaches a card: Triton's own launches, with a driver that writes them down; no GPU is needed."""

import contextvars
import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter has no driver", allow_module_level=True)

import triton
from compile_triton import Card
from triton.runtime import _allocation, driver

from muon_kernels.backends.configs import GemmConfig
from muon_kernels.backends.products import one_by_one
from muon_kernels.backends.triton import (
    apply,
    chains,
    gemm,
    gemm_add,
    gemm_apply,
    gram_norms,
    normalize,
    prologue,
    sum_squares,
    symm_gemm,
    warm_up,
)
from muon_kernels.backends.triton.launch import scratch
from muon_kernels.coefficients import resolve_coefficients
from muon_kernels.orthogonalize import Orthogonalizer
from muon_kernels.program import PRODUCT_FIELDS

CONFIG = GemmConfig(block_m=16, block_n=16, block_k=16, warps=4, stages=2, group=1)
FACTORS = {"eps": 0.0, "safety_factor": 1.0}


class Recorder(Card):
    """A card of compute capability 8.0 on which nothing runs, as much of it as launching takes."""

    def __init__(self):
        super().__init__(80)
        self.launched = []
        self.allocators = set()
        self.before_launch = lambda: None
        properties = {"max_shared_mem": 2**17}
        load = lambda name, binary, shared, device: (1, 1, 0, 0, 1024)  # noqa: E731
        self.utils = SimpleNamespace(get_device_properties=lambda device: properties, load_binary=load)

    @staticmethod
    def launcher_cls(src, metadata):
        def launch(x, y, z, stream, function, packed, launch_metadata, enter, leave, *arguments):
            if enter is not None:
                enter(launch_metadata)
            driver.active.before_launch()
            driver.active.allocators.add(_allocation._allocator.get())
            driver.active.launched.append((metadata.name, (x, y, z), as_numbers(arguments)))
            if leave is not None:
                leave(launch_metadata)

        return launch


def as_numbers(value):
    """Tensors as what a launcher makes of them."""
    if isinstance(value, tuple):
        return tuple(map(as_numbers, value))
    return value.data_ptr() if isinstance(value, torch.Tensor) else value


@pytest.fixture(autouse=True)
def record(monkeypatch):
    monkeypatch.setattr(chains, "_plans", {})
    monkeypatch.setattr(normalize, "_plans", {})
    monkeypatch.setattr(gemm, "_plans", {})
    monkeypatch.setattr(gemm, "_config", lambda *args: CONFIG)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with mock.patch.object(driver, "_active", Recorder()):
        yield


def launched(call):
    """What `call` launches."""
    driver.active.launched = []
    call()
    return driver.active.launched


def test_a_kept_plan_launches_what_a_fresh_one_does():
    """On another workspace than the one it was made for, and on that one again."""
    options = {"method": "gram", "compute_dtype": torch.float16, "device": torch.device("cpu"), "factored": True}
    first, second = (Orthogonalizer([(2, 16, 32)], resolve_coefficients("original", 3), **options) for _ in range(2))
    program = first.plan.program
    lists = {name: getattr(program, name) for name in ("buffers", "products", "scalars", "chains")}
    product_by_product = one_by_one(symm_gemm.symm_gemm, gemm_add.gemm_add)
    seen = []
    for space in (first.workspace, second.workspace, first.workspace):
        seen.append(launched(lambda space=space: chains.chains([space], **lists)))
        assert seen[-1] == launched(lambda space=space: product_by_product([space], **lists))
    assert len(seen[0]) == len(program.products) // PRODUCT_FIELDS
    assert seen[0] != seen[1]


def test_a_kept_plan_of_squaring_holds_no_addresses():
    """On another workspace, everything lies as far from its start."""
    options = {"method": "squaring", "compute_dtype": torch.float16, "device": torch.device("cpu"), "factored": True}
    groups = [(2, 16, 48), (1, 32, 32)]
    made = [Orthogonalizer(groups, resolve_coefficients("original", 5), **options) for _ in range(2)]
    program = made[0].plan.program
    lists = {name: getattr(program, name) for name in ("buffers", "products", "scalars", "chains")}
    starts = [each.workspace.data_ptr() for each in made]
    one, other = (launched(lambda each=each: chains.chains([each.workspace], **lists)) for each in made)
    assert len(chains._plans) == 1 and [name for name, *_ in one].count("gram_norms_kernel") == 1

    def moved(value):
        if isinstance(value, tuple):
            return tuple(map(moved, value))
        inside = isinstance(value, int) and 0 <= value - starts[0] < program.elements * 2
        return value - starts[0] + starts[1] if inside else value

    assert [moved(each) for each in one] == other != one


def test_elementwise_launches_hold_the_addresses_of_each_call():
    options = {"lr": torch.tensor(0.1), "weight_decay": 0.0, "scales": [1.0] * 3, "found_inf": None}
    calls = [[[torch.empty(4, 8) for _ in range(3)] for _ in range(2)] for _ in range(2)]
    for lists in calls:
        ((name, grid, arguments),) = launched(lambda lists=lists: apply.apply(*lists, **options))
        assert (name, grid) == ("apply_kernel", (1, 3, 1))
        for table, tensors in zip(arguments[:2], lists, strict=True):
            assert [odd >> 1 for odd in table[:3]] == [t.data_ptr() for t in tensors]


def test_gemm_apply_launches_hold_the_addresses_of_each_call():
    options = {"lr": torch.tensor(0.1), "weight_decay": 0.0, "scales": [1.0] * 3, "found_inf": None}
    for _ in range(2):
        a, b = torch.empty(3, 16, 16).half(), torch.empty(3, 16, 32).half()
        params = [torch.empty(16, 32) for _ in range(3)]
        call = lambda a=a, b=b, params=params: gemm_apply.gemm_apply([a], [b], params, **options)  # noqa: E731
        ((name, _, arguments),) = launched(call)
        assert name == "gemm_apply_kernel"
        assert [operand[0][0] for operand in arguments[:2]] == [a.data_ptr(), b.data_ptr()]
        assert [odd >> 1 for odd in arguments[2][:3]] == [param.data_ptr() for param in params]


@pytest.mark.parametrize("own", [True, False], ids=["own", "given"])
def test_normalize_is_planned_once_and_bound_to_each_call(own):
    """Several matrices in each of two entries, of which the first has a single tile."""
    sums, alive = torch.empty(5, dtype=torch.float64), []
    for eps in (0.0, 1e-7, 1.0):
        xs = [torch.empty(2, 8, 32), torch.empty(3, 40, 1024)]
        outs = [x.half() for x in xs]
        alive.append((xs, outs))
        options = {"eps": eps, "safety_factor": 1.0 + eps}
        call = lambda xs=xs, outs=outs, options=options: normalize.normalize(  # noqa: E731
            xs, None if own else sums, outs, **options
        )
        assert not launched(lambda call=call: warm_up(call))
        seen = launched(call)
        names, grids, arguments = zip(*seen, strict=True)
        normalised = arguments[own :: 1 + own]
        assert names == ("sum_squares_kernel", "normalize_kernel") * 2 if own else ("normalize_kernel",) * 2
        assert grids == ((2, 1, 1), (2, 1, 1), (15, 1, 1), (15, 1, 1))[:: 2 - own]
        firsts = [0, 0] if own else [0, 2]
        for i, (x, out, at, first, parts, *_) in enumerate(normalised):
            assert (x, out, first) == (xs[i].data_ptr(), outs[i].data_ptr(), firsts[i])
            assert parts == ((1, 5)[i] if own else 1)
            assert at == (arguments[2 * i][1] if own else sums.data_ptr())
            assert not own or arguments[2 * i][0] == x
            assert (eps, 1.0 + eps) == normalised[i][9:11]
    assert len(normalize._plans) == 2


@pytest.mark.parametrize("op", [symm_gemm.symm_gemm, gemm_add.gemm_add], ids=lambda op: op.__name__)
def test_products_are_planned_once_and_bound_to_each_call(op):
    """Two entries; of two calls whose tensors look alike the first has its summand for a result."""
    factors = {"alpha": 1.0, "beta": 0.5} | ({"delta": 0.0} if op is symm_gemm.symm_gemm else {})

    def call(a, c, outs, **change):
        ((name, _, arguments),) = launched(lambda: op(a, [x.mT for x in a], c, outs, **factors | change))
        assert name == f"{op.__name__}_kernel"
        for found, tensors in zip(arguments[:4], (a, a, c, outs), strict=True):
            assert (found or ()) == tuple((x.data_ptr(), *y) for x, (_, *y) in zip(tensors, found or (), strict=True))
        return arguments[5]

    alive = [[[torch.empty(2, m, n or m).half() for m in (16, 32)] for n in (48, None, None)] for _ in range(2)]
    for a, c, outs in alive:
        assert call(a, c, c) == call(a, c, outs) == 1.0
    assert len(gemm._plans) == 1
    assert call(*alive[0], alpha=2.0) == 2.0
    assert call(a, [], outs) == 1.0
    assert len(gemm._plans) == 3
    # Twelve tensors each, which all look alike.
    ones = [torch.empty(1, 1, 1).half() for _ in range(4)]
    assert call(ones[:3], ones[:3], ones[:3]) == call(ones, [], ones) == 1.0


def test_plans_of_a_device_are_not_those_of_another(monkeypatch):
    handles = []
    for device in (80, 81, 80):
        monkeypatch.setattr(driver.active, "get_current_device", lambda device=device: device)
        x = torch.empty(1, 16, 16).half()
        handles.append([*normalize.plan([x], None, [x], **FACTORS)])
        handles[-1] += gemm.bound("gemm_add", gemm_add.gemm_add_kernel, [x], [x], [], [x], {"alpha": 1.0, "beta": 0.0})
    first, second, third = ([launch.compiled for launch in launches] for launches in handles)
    assert len(first) == 3
    assert all(one is again and one is not other for one, other, again in zip(first, second, third, strict=True))


def test_plans_are_dropped_before_there_are_too_many(monkeypatch):
    monkeypatch.setattr(normalize, "MOST_PLANS", 2)
    for cols in (16, 32, 48):
        x = torch.empty(1, 4, cols)
        ((name, *_),) = launched(lambda x=x: normalize.normalize([x], x.new_empty(1).double(), [x], **FACTORS))
        assert name == "normalize_kernel" and len(normalize._plans) <= 2


def elementwise():
    """Launches that differ in one thing that Triton compiles a kernel for, or in none."""
    options = {"momentum": 0.9, "nesterov": True, "ema": True, "maximize": False, "grad_scale": None, "found_inf": None}
    sumsq = torch.empty(9, dtype=torch.float64)
    scalars = torch.empty(2)
    for shape, dtype, change in [
        ((4, 32), torch.float32, {}),
        ((4, 32), torch.float32, {"momentum": 0.5}),
        ((4, 32), torch.float32, {"nesterov": False}),
        ((4, 32), torch.float32, {"grad_scale": scalars[:1]}),
        ((4, 32), torch.float32, {"grad_scale": scalars[1:]}),
        ((4, 32), torch.float32, {"grad_scale": scalars[:1].double()}),
        ((4, 32), torch.float16, {}),
        ((4, 31), torch.float32, {}),
        ((1, 9000), torch.float32, {}),
    ]:
        tensors = [torch.empty(shape, dtype=dtype) for _ in range(2)]
        yield from prologue.plan(tensors, tensors, tensors, sumsq[:2], **options | change)
        yield from prologue.plan(tensors, tensors, tensors, sumsq[1:3], **options | change)
    for cols in (32, 31, 1):
        x = torch.empty(3, 4, cols + 1)
        for part in (x[:, :, 1:], x[:, :, :-1], x[:1, :, :-1]):
            for sums in (sumsq[: len(part)], sumsq[1 : 1 + len(part)], None):
                for out in (part.half(), part.bfloat16(), part):
                    yield from normalize.plan([part], sums, [out], **FACTORS)
            yield from sum_squares.plan([part], sumsq[: len(part)])
    for rate, shape in ((0.1, (4, 32)), (0.2, (4, 32)), (0.1, (4, 31)), (0.1, (9, 64))):
        tensors = [torch.empty(shape) for _ in range(2)]
        yield from apply.plan(
            tensors, tensors, lr=torch.tensor(rate), weight_decay=0.1, scales=[1.0] * 2, found_inf=None
        )


def products():
    for cols, first in ((32, 0), (32, 1), (31, 0), (32, 0)):
        x = torch.empty(2, 16, cols + 1).half()[:, :, first : first + cols]
        out = torch.empty(2, 16, 16).half()
        for c in ([], [out]):
            yield from symm_gemm.plan([x], [x.mT], c, [out], alpha=1.0, beta=0.5, delta=float(cols))
            for powers in ((1, 1, 1), (4, 2, 0)):
                options = {"norms": [out[:, :2, :1]], "powers": powers}
                yield from symm_gemm.plan([x], [x.mT], c, [out], alpha=1.0, beta=0.5, delta=float(cols), **options)
        yield from gram_norms.plan([out], [out[:, :2, :1]])


def stepped_products():
    scalar = torch.empty(1)
    for rate, scales, cols, dtype, param in [
        (0.1, [1.0, 1.0], 32, torch.float16, torch.empty(16, 32)),
        (0.2, [2.0, 2.0], 32, torch.float16, torch.empty(16, 32)),
        (0.2, [1.0, 3.0], 32, torch.float16, torch.empty(16, 32)),
        (0.1, [1.0, 1.0], 32, torch.bfloat16, torch.empty(16, 32)),
        (0.1, [1.0, 1.0], 32, torch.float16, torch.empty(16, 32).half()),
        (0.1, [1.0, 1.0], 32, torch.float16, torch.empty(16, 33)[:, 1:]),
        (0.1, [1.0, 1.0], 32, torch.float16, torch.empty(32, 16).mT),
        (0.1, [1.0, 1.0], 31, torch.float16, torch.empty(16, 31)),
    ]:
        a, b = torch.empty(2, 16, 48, dtype=dtype), torch.empty(2, 48, cols, dtype=dtype)
        for found_inf in (None, scalar):
            options = {"lr": torch.tensor(rate), "weight_decay": 0.1, "scales": scales, "found_inf": found_inf}
            yield from gemm_apply.plan([a], [b], [param, param], **options)


@pytest.mark.parametrize("plan", [elementwise, products, stepped_products])
def test_a_launch_finds_the_kernel_that_triton_would(plan):
    found = []
    for launch in plan():
        found.append(launch.compile())
        assert found[-1] is launch.kernel.warmup(**launch.arguments, grid=launch.grid, **launch.options)
    assert len({id(kernel) for kernel in found}) < len(found)


@pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook"])
def test_triton_hooks_see_every_launch(hook, monkeypatch):
    names = []
    monkeypatch.setattr(triton.knobs.runtime, hook, lambda metadata: names.append(metadata.get()["name"]))
    x = torch.empty(2, 16, 32).half()
    out = torch.empty(2, 16, 16).half()
    gemm_add.gemm_add([x], [x.mT], [], [out], alpha=1.0, beta=0.0)
    gemm_add.gemm_add([x], [x.mT], [], [out], alpha=1.0, beta=0.0)
    assert names == ["gemm_add_kernel"] * 2


def test_scratch_is_torchs_and_a_callers_allocator_stays():
    def call():
        triton.set_allocator(theirs)
        x = torch.empty(2, 16, 32).half()
        gemm_add.gemm_add([x], [x.mT], [], [torch.empty(2, 16, 16).half()], alpha=1.0, beta=0.0)
        assert driver.active.allocators == {scratch}
        assert _allocation._allocator.get() is theirs

    def theirs(size, alignment, stream):
        raise AssertionError("not for the library's kernels")

    contextvars.copy_context().run(call)


def test_kernels_compiled_side_by_side_by_warm_up_are_launched():
    x = torch.empty(2, 16, 48).half()
    out = torch.empty(2, 16, 16).half()
    call = lambda: gemm_add.gemm_add([x], [x.mT], [out], [out], alpha=1.0, beta=0.0)  # noqa: E731
    with ThreadPoolExecutor(1) as pool, triton.AsyncCompileMode(pool):
        assert not launched(lambda: warm_up(call))
    ((name, _, arguments),) = launched(call)
    assert (name, arguments[3][0][0]) == ("gemm_add_kernel", out.data_ptr())
