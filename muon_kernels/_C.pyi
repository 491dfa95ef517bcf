# Signatures of csrc/bindings.cpp. Pointers and streams are integers, 0 for null; dtypes are csrc/api.h's DType.
from collections.abc import Sequence

class PrologueItems:
    def __init__(self, items: Sequence[Sequence[int]]) -> None: ...

def prologue_partials(items: PrologueItems, grad_dtype: int, momentum_dtype: int, out_dtype: int) -> int: ...
def prologue(
    items: PrologueItems,
    grad_dtype: int,
    momentum_dtype: int,
    out_dtype: int,
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
def apply(
    items: Sequence[Sequence[int]],
    scales: Sequence[float],
    param_dtype: int,
    update_dtype: int,
    weight_decay: float,
    lr: float,
    lr_device: int,
    lr_device_float64: bool,
    found_inf: int,
    stream: int,
) -> None: ...
