"""Momentum in 8 bits: a code for every element, and the largest magnitude of every block of them.

A momentum m with the largest magnitude a of its block is stored as the integer c of [-127, 127] that is nearest to
127 sqrt(|m| / a), with m's sign, and read as a (c / 127) |c / 127|: off by at most a (sqrt(|m| / a) / 127 + 1 / 254^2).

Blocks are those of 8-bit optimizers, https://arxiv.org/abs/2110.02861. Their dynamic code suits the second moments of
Adam; equal steps suit momenta that are orthogonalised, https://arxiv.org/abs/2509.23106, and steps that grow with the
root suit them better: over the momenta of a small GPT (docs/charlm.md) after 290 steps the update turns by
1 - cos = 0.0060, with equal steps by 0.0077, with the dynamic code by 0.0150. With |m|^(2/3) it would be 0.0054, for a
power instead of a square.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..matrices import Layout, ordered_like, split
from ..workspace import pack, unpack

_LARGEST = 127


@dataclass(frozen=True)
class Int8Momentum:
    """A momentum store: "momentum_codes" (int8, of the parameter's shape) and "momentum_absmax" (float32, one a block)
    in the place of "momentum_buffer". Immutable; the state is kept with the parameter.

    What is read and stored again keeps its bits: a step that GradScaler skips changes nothing. A momentum that is not
    finite makes its block NaN.

    Args:
        block_size: elements that share a maximum, >= 1 (256: 1.016 bytes an element). They follow one another in a
            matrix, row by row; a matrix's last block may be shorter.

    Raises:
        TypeError, ValueError: `block_size`, by its value.
    """

    block_size: int = 256

    codes_key: ClassVar[str] = "momentum_codes"
    absmax_key: ClassVar[str] = "momentum_absmax"
    scratch_bytes: ClassVar[int] = 9
    """An element: float32, one more float32 while it is read or stored, and the code."""

    def __post_init__(self) -> None:
        if not isinstance(self.block_size, int) or isinstance(self.block_size, bool):
            raise TypeError(f"block_size must be an integer, got {self.block_size!r}")
        if self.block_size < 1:
            raise ValueError(f"block_size must be >= 1, got {self.block_size}")

    def stored(self, state: dict[str, Any], param: Tensor, layout: Layout) -> tuple[Tensor, list[Tensor]]:
        """Codes, and the maxima of every matrix of a parameter: what `state` has or is given, zero at first.

        A "momentum_buffer", of a checkpoint without a store, is stored and dropped.

        Raises:
            ValueError: codes or maxima of another shape or dtype than the parameter and its layout ask for.
        """
        if "momentum_buffer" not in state and self.codes_key in state:
            self._check(state, param, layout)
            codes = state[self.codes_key]
            if layout is not None and ordered_like(param, codes) is not codes:  # blocks follow the order in memory
                whole = self.dequantized(state, layout)
                state["momentum_buffer"] = ordered_like(param, whole)
        if "momentum_buffer" in state or self.codes_key not in state:
            self._create(state, param, layout)
        return state[self.codes_key], self._by_matrix(state[self.absmax_key], param, layout)

    @contextmanager
    def opened(self, codes: Sequence[Tensor], absmax: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Momenta of a list of matrices as float32, contiguous; what becomes of them inside is stored at the end.

        Args:
            codes: int8 [rows, cols] each, any strides.
            absmax: float32 [blocks] of each.
        """
        flat, momenta = self._read(codes, absmax)
        yield momenta
        self._write(flat, codes, absmax)

    def dequantized(self, state: dict[str, Any], layout: Layout) -> Tensor:
        """The momentum in a parameter's state: float32, like the codes in shape and strides."""
        codes = state[self.codes_key]
        whole = torch.empty_like(codes, dtype=torch.float32)
        if codes.numel():
            absmax = self._by_matrix(state[self.absmax_key], codes, layout)
            _, momenta = self._read(split(codes, layout), absmax)
            torch._foreach_copy_(split(whole, layout), momenta)
        return whole

    def _create(self, state: dict[str, Any], param: Tensor, layout: Layout) -> None:
        codes = torch.zeros_like(param, dtype=torch.int8, memory_format=torch.preserve_format)
        absmax = torch.zeros(sum(self._blocks(param, layout)), dtype=torch.float32, device=param.device)
        momentum = state.get("momentum_buffer")
        if momentum is not None and momentum.shape != param.shape:
            raise ValueError(f"momentum_buffer must have shape {list(param.shape)}, got {list(momentum.shape)}")
        if momentum is not None and param.numel():
            if layout is not None:
                momentum = ordered_like(param, momentum)
            matrices = split(codes, layout)
            flat, momenta = pack([m.shape for m in matrices], self.block_size, torch.float32, param.device)
            torch._foreach_copy_(momenta, split(momentum, layout))
            self._write(flat, matrices, self._by_matrix(absmax, param, layout))
        state |= {self.codes_key: codes, self.absmax_key: absmax}
        state.pop("momentum_buffer", None)

    def _read(self, codes: Sequence[Tensor], absmax: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        shapes = [c.shape for c in codes]
        packed, matrices = pack(shapes, self.block_size, torch.int8, codes[0].device)
        torch._foreach_copy_(matrices, list(codes))
        flat, momenta = pack(shapes, self.block_size, torch.float32, codes[0].device)
        # 127 / 127 is one: a maximum that is read and stored again keeps its bits, and so do the codes below it.
        torch.div(packed, _LARGEST, out=flat)
        flat.mul_(flat.abs()).mul_(torch.cat(list(absmax))[:, None])
        return flat, momenta

    def _write(self, flat: Tensor, codes: Sequence[Tensor], absmax: Sequence[Tensor]) -> None:
        """Stores blocks [number, block_size], which are overwritten."""
        largest = torch.linalg.vector_norm(flat, torch.inf, dim=1)
        flat.div_(largest[:, None]).nan_to_num_(0.0)  # of blocks that are zero, and of those that are not finite
        packed = flat.abs().sqrt_().mul_(_LARGEST).round_().copysign_(flat).to(torch.int8)
        torch._foreach_copy_(list(codes), unpack(packed, [c.shape for c in codes]))
        torch._foreach_copy_(list(absmax), list(largest.split([len(a) for a in absmax])))

    def _blocks(self, tensor: Tensor, layout: Layout) -> list[int]:
        """Of every matrix of a tensor."""
        return [-(-matrix.numel() // self.block_size) for matrix in split(tensor, layout)]

    def _by_matrix(self, absmax: Tensor, tensor: Tensor, layout: Layout) -> list[Tensor]:
        return list(absmax.split(self._blocks(tensor, layout)))

    def _check(self, state: dict[str, Any], param: Tensor, layout: Layout) -> None:
        expected = {
            self.codes_key: (torch.int8, param.shape),
            self.absmax_key: (torch.float32, torch.Size([sum(self._blocks(param, layout))])),
        }
        for key, (dtype, shape) in expected.items():
            found = state.get(key)
            if not isinstance(found, Tensor) or (found.dtype, found.shape) != (dtype, shape):
                got = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(
                    f"{key} of a parameter of shape {list(param.shape)} with layout {layout!r} and {self} must be "
                    f"{dtype} {list(shape)}, got {got}"
                )


def check_momentum_store(options: dict[str, Any]) -> None:
    """Raises TypeError for a store that is neither None nor `Int8Momentum`, ValueError for one with a
    `momentum_dtype`."""
    store = options["momentum_store"]
    if store is None:
        return
    if not isinstance(store, Int8Momentum):
        raise TypeError(f"momentum_store must be None or Int8Momentum(...), got {store!r}")
    if options["momentum_dtype"] is not None:
        raise ValueError(f"momentum_dtype must be None with momentum_store {store}, got {options['momentum_dtype']}")


# A checkpoint holds the options of its groups, and torch.load(weights_only=True) shall read it.
torch.serialization.add_safe_globals([Int8Momentum])
