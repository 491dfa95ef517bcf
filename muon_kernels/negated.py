"""Tensors with torch's negative bit, as of `x.conj().imag`: torch negates what it reads of them, our kernels cannot."""

from __future__ import annotations

import torch
from torch import Tensor


def check_not_negated(name: str, tensor: Tensor) -> None:
    """Raises ValueError for a tensor with that bit. torch's fused optimizers raise too.

    A compiler cannot ask; what inductor compiles, x + 1 too, ignores the bit of its inputs (torch 2.13).
    """
    if not torch.compiler.is_compiling() and tensor.is_neg():
        raise ValueError(
            f"{name} must not be negated lazily (is_neg(), as of x.conj().imag); its resolve_neg() is not; "
            f"got shape {list(tensor.shape)}"
        )
