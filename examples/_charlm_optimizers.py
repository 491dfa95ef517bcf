"""The optimizers that are compared, each with one learning rate for the whole model."""

from dataclasses import dataclass
from typing import Any

import torch
from _gpt import Gpt
from torch import nn

from muon_kernels import Muon
from muon_kernels.variants import Int8Momentum

LABELS = {
    "muon": "Muon",
    "adamw": "AdamW",
    "torch-muon": "torch.optim.Muon",
    "muon-8bit": "Muon, 8-bit momentum",
    "muon-bf16": "Muon, bf16",
    "muon-sr": "Muon, bf16, stochastic",
    "muon-masters": "Muon, bf16, fp32 masters",
}
COMPARED = ("muon", "adamw", "torch-muon")
"""Unless others are asked for."""
MUON_OPTIONS: dict[str, dict[str, Any]] = {
    "muon": {},
    "muon-8bit": {"momentum_store": Int8Momentum()},
    "muon-bf16": {},
    "muon-sr": {"rounding": "stochastic"},
    "muon-masters": {"master_dtype": torch.float32},
}
"""Of muon_kernels.Muon, by the optimizer's name."""
BF16_WEIGHTS = ("muon-bf16", "muon-sr", "muon-masters")
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
# Muon's steps get the size of AdamW's, so that one rate serves the matrices and what AdamW steps beside them.
RULE = "match_rms_adamw"


@dataclass(frozen=True)
class Method:
    """What is compared: an optimizer at a rate; `backend` is that of muon_kernels, None where it does not step."""

    optimizer: str
    backend: str | None
    lr: float

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.bfloat16 if self.optimizer in BF16_WEIGHTS else torch.float32

    @property
    def label(self) -> str:
        """For tables and figures; all rates of a sweep share it."""
        return LABELS[self.optimizer] + (f" ({self.backend})" if self.backend not in (None, "auto") else "")


def build_optimizers(method: Method, model: Gpt) -> list[torch.optim.Optimizer]:
    """One optimizer for everything, or torch.optim.Muon for the matrices with AdamW for the rest."""
    name, lr = method.optimizer, method.lr
    matrices, tables, gains = sort_parameters(model)
    if name == "adamw":
        return [_adamw(matrices + tables, gains, lr)]
    if name == "torch-muon":
        return [torch.optim.Muon(matrices, lr, WEIGHT_DECAY, adjust_lr_fn=RULE), _adamw(tables, gains, lr)]
    if name not in MUON_OPTIONS:
        raise ValueError(f"unknown optimizer {name!r}: choose one of {', '.join(LABELS)}")
    others = {"use_muon": False, "betas": BETAS}
    groups = [{"params": matrices}, {"params": tables, **others}, {"params": gains, "weight_decay": 0.0, **others}]
    return [Muon(groups, lr, WEIGHT_DECAY, adjust_lr_fn=RULE, **MUON_OPTIONS[name])]


def state_bytes(optimizers: list[torch.optim.Optimizer], model: Gpt) -> float:
    """Bytes of what the optimizers keep, for a parameter of the model."""
    kept = [value for o in optimizers for state in o.state.values() for value in state.values()]
    return sum(value.nbytes for value in kept) / sum(p.numel() for p in model.parameters())


def sort_parameters(model: Gpt) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """The matrices of the blocks; embedding and head, whose rows stand for single bytes; the norms' gains."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    tables = [model.embedding.weight, model.head.weight]
    return matrices, tables, [p for p in model.parameters() if p.ndim == 1]


def _adamw(decayed: list[nn.Parameter], gains: list[nn.Parameter], lr: float) -> torch.optim.AdamW:
    groups = [{"params": decayed}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr, BETAS, weight_decay=WEIGHT_DECAY, fused=True)
