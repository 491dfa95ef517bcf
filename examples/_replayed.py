"""Training steps of networks so small that a GPU waits for the host: captured in a CUDA graph and replayed."""

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[..., Tensor]

EAGER_STEPS = 3
"""Run as they are: they make the optimizer's state and whatever libraries allocate at first."""


def replayed(step: Step, device: torch.device) -> Step:
    """`step`, which takes tensors of constant shapes and returns one; on a GPU its fourth call is captured.

    From then on a call copies its arguments to where the graph reads them and replays it; the result is a copy. Python
    in `step` no longer runs, so that it must do the same every time. On other devices `step` itself.
    """
    return _Replayed(step) if device.type == "cuda" else step


class _Replayed:
    def __init__(self, step: Step) -> None:
        self._step = step
        self._calls = 0
        self._stream = torch.cuda.Stream()  # a graph cannot be captured on the default stream
        self._graph = torch.cuda.CUDAGraph()

    def __call__(self, *inputs: Tensor) -> Tensor:
        self._calls += 1
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = self._call(inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def _call(self, inputs: tuple[Tensor, ...]) -> Tensor:
        if self._calls <= EAGER_STEPS:
            return self._step(*inputs)
        if self._calls == EAGER_STEPS + 1:
            self._inputs = [x.clone() for x in inputs]
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._result = self._step(*self._inputs)
        for kept, x in zip(self._inputs, inputs, strict=True):
            kept.copy_(x)
        self._graph.replay()
        return self._result.clone()
