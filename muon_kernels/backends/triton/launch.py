"""One launch of a kernel as a value: it can be run, or only compiled.

Triton compiles a kernel again for every integer argument that turns to 1 or becomes (un)divisible by 16. That is
wanted for extents and strides, where it decides how wide loads are, and unwanted for addresses and counts: those
travel through `unspecialized` as odd numbers, and a kernel reads them back with `>> 1`.

To find the compiled kernel of a launch, Triton looks at every number of its arguments, which takes the host longer than
to enqueue it. Here it is found by fewer facts, or kept with a launch that is planned once and bound to the tensors of
each call, and Triton's handle enqueues it, which wants all arguments in their order.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Hashable, Iterable
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
import triton
from torch import Tensor
from triton.runtime import driver

from ..device import on_device

ALIGNMENT = 16
"""Bytes: the widest load of a thread."""

INTERPRETED = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter, which compiles nothing and wants a tensor for every pointer."""


MOST_COMPILED = 1024

_compile_only: contextvars.ContextVar[bool] = contextvars.ContextVar("muon_kernels_triton_compile_only", default=False)

_compiled: dict[tuple[Hashable, ...], Any] = {}

Plan = TypeVar("Plan")

Hook = Callable[[Any], None] | None

Allocator = Callable[[int, int, int | None], Tensor]
"""Of bytes, their alignment and a stream: what Triton asks for scratch memory at a launch."""


class Launch(NamedTuple):
    """A kernel, its grid, its arguments by name and in its order, and how Triton is to compile it.

    registers: the most that a thread may use; None leaves it to the compiler.
    free: arguments whose values change nothing about that: tuples of `unspecialized` numbers, as long as another
        argument says, and those that the kernel declares.
    compiled: the handle, of a launch on the device that it was compiled for. Pointers may be addresses then.
    """

    kernel: triton.JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int
    stages: int = 1
    registers: int | None = None
    free: tuple[str, ...] = ()
    compiled: Any = None

    @property
    def options(self) -> dict[str, Any]:
        """How Triton is to compile it, by Triton's names."""
        return {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": self.registers}

    def plan(self, *names: str) -> Launch:
        """The launch to keep: compiled for the current device, and without the arguments that `bind` is to give it."""
        return self._replace(arguments=self.arguments | dict.fromkeys(names), compiled=self.compile())

    def bind(self, arguments: dict[str, Any]) -> Launch:
        """The launch with these arguments, of the looks that it was planned for."""
        return self._replace(arguments=self.arguments | arguments)

    def enqueue(self, stream: int, enter: Hook, leave: Hook) -> None:
        """Enqueues the kernel on a stream of the current device, between Triton's hooks."""
        compiled = self.compile()
        if hasattr(compiled, "result"):  # compiled under triton.AsyncCompileMode
            compiled = compiled.result()
        # As JITFunction.run does, but for metadata that no hook asks for: they take longer to make than the rest.
        x, y, z = (*self.grid, 1, 1)[:3]
        arguments = self.arguments.values()
        metadata = compiled.launch_metadata((x, y, z), stream, *arguments) if enter or leave else None
        run = compiled.run  # loads the kernel
        run(x, y, z, stream, compiled.function, compiled.packed_metadata, metadata, enter, leave, *arguments)

    def compile(self) -> Any:
        """Compiles the kernel for the current device, unless that was done before; returns Triton's handle."""
        if self.compiled is not None or INTERPRETED:
            return self.compiled
        decisive = [_looks(value) for name, value in self.arguments.items() if name not in self.free]
        key = (self.kernel, driver.active.get_current_device(), self.warps, self.stages, self.registers, *decisive)
        return kept(_compiled, MOST_COMPILED, key, self._compile)

    def _compile(self) -> Any:
        assert list(self.arguments) == self.kernel.arg_names
        return self.kernel.warmup(**self.arguments, grid=self.grid, **self.options)


def kept(
    plans: dict[tuple[Hashable, ...], Plan], most: int, key: tuple[Hashable, ...], make: Callable[[], Plan]
) -> Plan:
    """plans[key], made if it is not there; `most` of them are dropped before one more is."""
    plan = plans.get(key)
    if plan is None:
        plan = make()
        if len(plans) >= most:
            plans.clear()
        plans[key] = plan
    return plan


def looks(*tensors: Tensor) -> tuple[Hashable, ...]:
    """What plans are made for: the current device, and of each tensor all but where it lies."""
    device = None if INTERPRETED else driver.active.get_current_device()
    return (device, *[(x.dtype, x.shape, x.stride(), x.data_ptr() % ALIGNMENT) for x in tensors])


def _looks(value: Any) -> Hashable:
    """What Triton may compile a kernel for of an argument."""
    kind = type(value)
    if kind is tuple:
        return tuple([each if type(each) is int else _looks(each) for each in value])  # int: most of them, uncalled
    if kind is float:
        return float
    return (value.dtype, value.data_ptr() % ALIGNMENT) if isinstance(value, Tensor) else value


def scratch(size: int, alignment: int, stream: int | None) -> Tensor:
    """Where a kernel keeps its tensor descriptors. Freed at once, it is reused behind that kernel on its stream."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


def run(launches: Iterable[Launch], device: torch.device, allocate: Allocator = scratch) -> None:
    """Enqueues the launches, in order, on the current stream of `device`; `allocate` gives them scratch memory.

    They may be made one after the other: when the next one is asked for, what came before is enqueued.
    """
    with on_device(device):
        if compiles_only():
            for launch in launches:
                launch.compile()
        else:
            contextvars.copy_context().run(_enqueue, launches, allocate)


def _enqueue(launches: Iterable[Launch], allocate: Allocator) -> None:
    """Runs the launches; in a context of its own, where Triton's allocator can be ours and the caller's stays his."""
    triton.set_allocator(allocate)
    if INTERPRETED:
        for launch in launches:
            launch.kernel[launch.grid](**launch.arguments)
        return
    stream = driver.active.get_current_stream(driver.active.get_current_device())
    enter, leave = hooks()
    for launch in launches:
        launch.enqueue(stream, enter, leave)


def hooks() -> list[Hook]:
    """Triton's hooks before and after a launch, if they are set: chains of functions, or in their place a function."""
    runtime = triton.knobs.runtime
    return [
        hook if getattr(hook, "calls", hook) else None for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook)
    ]


def compiles_only() -> bool:
    """Whether this is a call of `warm_up`."""
    return _compile_only.get()


def warm_up(call: Callable[[], object]) -> None:
    """Makes `call()` with every kernel of this backend compiled instead of run, so that no later step compiles.

    Kernels depend on dtypes, shapes and strides only, so that `call` may work on scratch tensors:

        warm_up(lambda: orthogonalize(torch.empty(48, 768, 768, device="cuda", dtype=torch.bfloat16)))

    What the kernels would have written is left as it was.
    """
    token = _compile_only.set(True)
    try:
        call()
    finally:
        _compile_only.reset(token)


@cache
def processors(device: torch.device) -> int:
    """The number of multiprocessors."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def unspecialized(value: int) -> int:
    """`value` in a form that no kernel is specialised for; value >= 1."""
    return 2 * value + 1
