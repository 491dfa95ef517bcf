# Signatures of csrc/bindings.cpp and csrc/wave.cpp. Addresses of scalars and of scratch memory, and streams, are
# integers, 0 for null; dtypes are csrc/api.h's DType; what a tuple of integers holds stands in those files.
from collections.abc import Sequence

from torch import Tensor

Integers = Sequence[int]

class TensorList:
    def like(self) -> bytes: ...
    def any_empty(self) -> bool: ...

def read(tensors: list[Tensor], types: set[type]) -> TensorList | None: ...

class Prologue:
    def __init__(self, grads: list[Tensor], momenta: list[Tensor], outs: list[Tensor]) -> None: ...
    def partials(self) -> int: ...
    def launch(
        self,
        momentum: float,
        nesterov: bool,
        ema: bool,
        maximize: bool,
        grad_scale: int,
        found_inf: int,
        sumsq: int,
        partials: int,
        stream: int,
    ) -> None: ...

class SumSquares:
    def __init__(self, xs: list[Tensor]) -> None: ...
    def partials(self) -> int: ...
    def launch(self, sumsq: int, partials: int, stream: int) -> None: ...

class Normalize:
    def __init__(self, xs: list[Tensor], outs: list[Tensor]) -> None: ...
    def scratch(self) -> int: ...
    def launch(self, sumsq: int, scratch: int, eps: float, safety_factor: float, stream: int) -> None: ...

def apply(
    params: list[Tensor],
    updates: list[Tensor],
    scales: Sequence[float],
    weight_decay: float,
    lr: float,
    lr_device: int,
    lr_device_float64: bool,
    found_inf: int,
    stream: int,
) -> None: ...
def gemm(
    symmetric: bool,
    items: Sequence[Integers],
    dtype: int,
    alpha: float,
    beta: float,
    delta: float,
    tile: int,
    stream: int,
) -> None: ...
def gemm_apply(
    items: Sequence[Integers],
    params: Sequence[Integers],
    scales: Sequence[float],
    param_dtype: int,
    alpha: float,
    overwrite: bool,
    weight_decay: float,
    lr: float,
    lr_device: int,
    lr_device_float64: bool,
    found_inf: int,
    stream: int,
) -> None: ...
def choose_gemm_tile(symmetric: bool, items: Sequence[Integers], multiprocessors: int) -> int: ...

class Chains:
    def __init__(self, buffers: Integers, products: Integers, scalars: Sequence[float], chains: Integers) -> None: ...
    def launch(self, dtype: int, workspace: int, stream: int) -> None: ...

class Wave:
    def __init__(
        self,
        chains: Chains,
        normalised: Sequence[Integers],
        ps: Sequence[Integers],
        xs: Sequence[Integers],
    ) -> None: ...

class WaveStep:
    def __init__(
        self,
        wave: Wave,
        order: Integers,
        grads: TensorList,
        momenta: TensorList,
        params: TensorList,
        scales: Sequence[float],
    ) -> None: ...
    def fits(self) -> bool: ...
    def scratch(self) -> int: ...
    def launch(
        self,
        momentum: float,
        nesterov: bool,
        maximize: bool,
        grad_scale: int,
        eps: float,
        safety_factor: float,
        weight_decay: float,
        lr: float,
        lr_device: int,
        lr_device_float64: bool,
        found_inf: int,
        workspace: int,
        scratch: int,
        stream: int,
    ) -> None: ...

class WaveOrthogonalize:
    def __init__(self, wave: Wave, xs: list[Tensor], outs: list[Tensor]) -> None: ...
    def fits(self) -> bool: ...
    def scratch(self) -> int: ...
    def launch(self, eps: float, safety_factor: float, workspace: int, scratch: int, stream: int) -> None: ...
