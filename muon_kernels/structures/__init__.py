"""Structured square matrices, and the experimental whitening of a matrix inside a structure.

`SUPPORTED_STRUCTURES[name].from_dense(x).to_dense()` shows what a structure keeps of a symmetric matrix.
"""

from __future__ import annotations

from .base import Structure
from .blocks import BlockDiagonal, Dense, Diagonal, block_diagonal
from .toeplitz import LowerToeplitz, UpperToeplitz
from .triangular import (
    BlockTriangular,
    LowerArrowDown,
    LowerArrowUp,
    UpperArrowDown,
    UpperArrowUp,
    hierarchical,
)
from .whitening import Whitening, WhiteningDiverged, whiten

SUPPORTED_STRUCTURES: dict[str, type[Structure]] = {
    "dense": Dense,
    "diagonal": Diagonal,
    "block30diagonal": block_diagonal(30),
    "hierarchical15_15": hierarchical(15, 15),
    "triltoeplitz": LowerToeplitz,
    "triutoeplitz": UpperToeplitz,
}
"""Name -> class, in the order of https://github.com/f-dangel/singd (singd 0.0.5)."""

__all__ = [
    "SUPPORTED_STRUCTURES",
    "BlockDiagonal",
    "BlockTriangular",
    "Dense",
    "Diagonal",
    "LowerArrowDown",
    "LowerArrowUp",
    "LowerToeplitz",
    "Structure",
    "UpperArrowDown",
    "UpperArrowUp",
    "UpperToeplitz",
    "Whitening",
    "WhiteningDiverged",
    "block_diagonal",
    "hierarchical",
    "whiten",
]
