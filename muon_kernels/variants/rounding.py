"""Stochastic rounding of bfloat16 parameters: up or down with the probabilities that make it exact on average.

A float32 x between two neighbouring bfloat16 numbers becomes the farther-from-zero one with the probability
(|x| - below) / (above - below): its lower 16 bits over 2^16. Steps far below the last bit then move a parameter on
average as far as they should; rounded to nearest, they are lost. https://arxiv.org/abs/2010.06192

The random bits are a hash of the element's number in its matrix and of the matrix's key, an integer on the device that
every step moves on ("rounding_key" in the state). They depend on nothing else: not on what else is stepped, not on a
generator that a captured CUDA graph or a checkpoint would have to know of. A key starts as the sum of its matrix's own
bits, which is the same on every replica of a model. The hash is a two-round 32-bit mixer with the constants that
https://github.com/skeeto/hash-prospector found to be the least biased.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..workspace import pack

Rounding = Literal["nearest", "stochastic"]

KEY = "rounding_key"
SCRATCH_BYTES = 13
"""An element: float32, half of a 64-bit hash and of what it is made of, and whether it is NaN."""

_KEY_STEP = 0x9E3779B9
"""2^32 over the golden ratio, odd: the keys of 2^32 steps differ."""

_MASK = 2**32 - 1

_UNIT = 4
"""Elements: float32 copies start on 16 bytes each, as the kernels like them."""


def check_rounding(rounding: Any, master_dtype: torch.dtype | None) -> None:
    """Raises ValueError for what is no name, and for stochastic rounding beside copies that need none."""
    if rounding not in get_args(Rounding):
        raise ValueError(f"rounding must be one of {', '.join(get_args(Rounding))}, got {rounding!r}")
    if rounding == "stochastic" and master_dtype is not None:
        raise ValueError(f"rounding 'stochastic' needs master_dtype None, got {master_dtype}")


def check_rounded(rounding: Rounding, params: Sequence[Tensor]) -> None:
    """Raises TypeError for a parameter that cannot be rounded stochastically."""
    if rounding == "nearest":
        return
    for p in params:
        if p.dtype != torch.bfloat16:
            raise TypeError(
                f"rounding 'stochastic' needs bfloat16 parameters, got {p.dtype} for shape {list(p.shape)}; give "
                "others in a group with rounding 'nearest'"
            )


def rounding_keys(state: dict[str, Any], matrices: Sequence[Tensor]) -> list[Tensor]:
    """The keys of a parameter's matrices, bfloat16: views of the int64 tensor that its state has or is given.

    Raises:
        ValueError: that tensor has not one element a matrix.
    """
    if KEY not in state:
        state[KEY] = torch.stack([matrix.detach().view(torch.int16).sum() for matrix in matrices])
    if state[KEY].shape != (len(matrices),):
        raise ValueError(f"{KEY} must have shape [{len(matrices)}], one a matrix, got {list(state[KEY].shape)}")
    return list(state[KEY].unbind(0))


@contextmanager
def stochastically_rounded(
    params: Sequence[Tensor], keys: Sequence[Tensor], found_inf: Tensor | None
) -> Iterator[list[Tensor]]:
    """Contiguous float32 copies of `params`, which become what is made of the copies inside, rounded.

    A value that bfloat16 has stays as it is, infinities and the sign of zero included; NaN stays NaN.

    Args:
        params: bfloat16, any shapes and strides; at least one.
        keys: one int64 [] for each.
        found_inf: one float32; nonzero leaves the keys as they were.
    """
    flat, copies = pack([p.shape for p in params], _UNIT, torch.float32, params[0].device)
    torch._foreach_copy_(copies, list(params))
    yield copies
    not_numbers = flat.isnan()
    bits = flat.view(torch.int32).view(-1, 2)  # a hash serves two elements
    hashes = _hashed(_numbered([-(-c.numel() // _UNIT) * _UNIT // 2 for c in copies], keys))
    bits[:, 0].add_(hashes & 0xFFFF)
    bits[:, 1].add_(hashes >> 16)
    bits.bitwise_and_(-0x10000)
    flat.masked_fill_(not_numbers, torch.nan)
    torch._foreach_copy_(list(params), copies)
    if found_inf is None:
        torch._foreach_add_(list(keys), _KEY_STEP)
    else:  # a list: as the one summand of all, the tensor would be read on the host
        step = torch.where(found_inf != 0, 0, _KEY_STEP).reshape(())
        torch._foreach_add_(list(keys), [step] * len(keys))


def _numbered(counts: Sequence[int], keys: Sequence[Tensor]) -> Tensor:
    """keys[i], keys[i] + 1, ... modulo 2^32, counts[i] of them, for one i after the other: int64 [sum of counts]."""
    numbers = torch.arange(max(counts), device=keys[0].device)
    x = torch.empty(sum(counts), dtype=torch.int64, device=keys[0].device)
    for part, key in zip(x.split(list(counts)), keys, strict=True):
        torch.add(numbers[: len(part)], key, out=part)
    return x.bitwise_and_(_MASK)


def _hashed(x: Tensor) -> Tensor:
    """Integers in [0, 2^32), int64, as hashes in that range; overwrites them."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):  # below 2^31: no product overflows
        x.bitwise_xor_(x >> shift).mul_(factor).bitwise_and_(_MASK)
    return x.bitwise_xor_(x >> 15)
