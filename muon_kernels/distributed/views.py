"""Pieces of matrices as views of the tensors that they lie in, and copies of many of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .exchange import Segment
from .layout import Piece

LARGE_PIECE = 2**21
"""Elements; to copy them takes longer than a launch does."""


def cut(tensor: Tensor, piece: Piece) -> Tensor:
    """A piece where it lies in a local tensor."""
    if tensor.shape == (piece.rows, piece.cols):  # all of it: three views less
        return tensor
    return tensor[piece.lead][piece.row : piece.row + piece.rows, piece.col : piece.col + piece.cols]


def within(batches: Sequence[Tensor], segments: Sequence[Sequence[Segment]]) -> list[Tensor]:
    """The segments of every matrix of a problem list, where they lie in it."""
    of_matrix = iter(segments)
    found = []
    for batch in batches:
        start, (next_matrix, down, right) = batch.storage_offset(), batch.stride()
        for _ in range(len(batch)):
            for _, piece, _ in next(of_matrix):
                at = start + piece.at_row * down + piece.at_col * right
                found.append(batch.as_strided((piece.rows, piece.cols), (down, right), at))  # one view instead of three
            start += next_matrix
    return found


def read(buffer: Tensor, segment: Segment) -> Tensor:
    """A segment of a buffer, which is a whole storage, as [rows, cols]."""
    rows, cols = segment.piece.rows, segment.piece.cols
    return buffer.as_strided((rows, cols), (cols, 1), segment.offset)


def read_all(buffer: Tensor, segments: Sequence[Sequence[Segment]]) -> list[Tensor]:
    """Those of every matrix, one after the other."""
    return [read(buffer, segment) for of_matrix in segments for segment in of_matrix]


def copy(into: Sequence[Tensor], pieces: Sequence[Tensor]) -> None:
    """Small pieces in one launch, which reaches 2.7 TB/s on an H200; large ones each by itself, at 3.8."""
    small: tuple[list[Tensor], list[Tensor]] = [], []
    for target, piece in zip(into, pieces, strict=True):
        if piece.numel() < LARGE_PIECE:
            small[0].append(target)
            small[1].append(piece)
        else:
            target.copy_(piece)
    if small[0]:
        torch._foreach_copy_(*small)
