"""Variants of Muon as parts that compose: what happens to an orthogonalised update before it reaches its parameter.

- `NorMuon`, `AdaMuon`: normalisers, which divide the update by the root of a running second moment
- the rules of weight decay, by name: "decoupled" or "cautious"
"""

from .normalizers import AdaMuon, Normalizer, NorMuon
from .weight_decay import WeightDecayRule

__all__ = ["AdaMuon", "NorMuon", "Normalizer", "WeightDecayRule"]
