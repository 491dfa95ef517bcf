"""What is measured: the tables of shapes, each in order of importance, and tiny stand-ins for tests."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

Shape = tuple[int, int]


@dataclass(frozen=True)
class MatrixCell:
    """`batch` matrices of one shape to orthogonalise."""

    rows: int
    cols: int
    batch: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols} x{self.batch}"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.batch, self.rows, self.cols


@dataclass(frozen=True)
class StepCell:
    """One optimizer step over all matrices of a model; parameters, gradients and momenta are of `dtype`."""

    model: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.model} {str(self.dtype).removeprefix('torch.')}"

    @property
    def shapes(self) -> list[Shape]:
        return MODELS[self.model]

    @property
    def counts(self) -> dict[Shape, int]:
        return dict(Counter(self.shapes))


@dataclass(frozen=True)
class OpCell:
    """One call of an op: `count` matrices of one shape, as one batched problem (products) or a list (element-wise)."""

    kind: str
    rows: int
    cols: int
    count: int

    def __str__(self) -> str:
        return f"{self.kind} {self.rows}x{self.cols} x{self.count}"


MODELS: dict[str, list[Shape]] = {
    "gpt2": 12 * (4 * [(768, 768)] + [(3072, 768), (768, 3072)]),
    "llama1b": 16 * (2 * [(2048, 2048)] + 2 * [(512, 2048)] + 2 * [(8192, 2048)] + [(2048, 8192)]),
    "kimi-k2": 216 * [(2048, 7168)] + [(7168, 18432)],  # what gram-newton-schulz is shown on
    "tiny": 2 * [(32, 32)] + [(64, 32), (32, 64)],
}

ORTHOGONALIZE = [
    MatrixCell(768, 768, 48),
    MatrixCell(768, 3072, 12),
    MatrixCell(2048, 2048, 16),
    MatrixCell(4096, 4096, 1),
    MatrixCell(768, 768, 1),
    MatrixCell(4096, 11008, 1),
    MatrixCell(1024, 4096, 24),
    MatrixCell(2048, 2048, 1),
    MatrixCell(2048, 768, 64),
    MatrixCell(768, 3072, 1),
    MatrixCell(128, 128, 256),
    MatrixCell(8192, 8192, 1),
    MatrixCell(4096, 4096, 8),
]

STEP = [
    StepCell("gpt2", torch.float32),
    StepCell("llama1b", torch.bfloat16),
    StepCell("gpt2", torch.bfloat16),
    StepCell("llama1b", torch.float32),
    StepCell("kimi-k2", torch.bfloat16),
]

PRODUCTS = ("gram", "polynomial", "final")
"""symm_gemm of X and its transpose, symm_gemm of A and A plus A, gemm_add of B and X plus X."""

OPS = [
    *(OpCell(kind, 768, 768, 48) for kind in PRODUCTS),
    *(OpCell(kind, 4096, 4096, 1) for kind in PRODUCTS),
    OpCell("prologue", 2048, 2048, 16),
    OpCell("apply", 2048, 2048, 16),
    OpCell("gram", 768, 3072, 12),
    OpCell("final", 768, 3072, 12),
    OpCell("prologue", 256, 256, 1000),
    OpCell("apply", 256, 256, 1000),
    OpCell("normalize", 2048, 2048, 16),
    *(OpCell(kind, 2048, 2048, 1) for kind in PRODUCTS),
    *(OpCell(kind, 8192, 8192, 1) for kind in PRODUCTS),
]

SMOKE_ORTHOGONALIZE = [MatrixCell(48, 48, 1), MatrixCell(64, 32, 3)]
SMOKE_STEP = [StepCell("tiny", torch.float32), StepCell("tiny", torch.bfloat16)]
SMOKE_OPS = [OpCell(kind, 32, 48, 2) for kind in (*PRODUCTS, "prologue", "normalize", "apply")]
