"""Variants of Muon as parts that compose: what happens to an orthogonalised update before it reaches its parameter.

- `NorMuon`, `AdaMuon`: normalisers, which divide the update by the root of a running second moment
- the rules of weight decay, by name: "decoupled" or "cautious"
- `QKClip`: a hook that keeps attention logits below a bound
"""

from .normalizers import AdaMuon, Normalizer, NorMuon
from .qk_clip import QKClip
from .weight_decay import WeightDecayRule

__all__ = ["AdaMuon", "NorMuon", "Normalizer", "QKClip", "WeightDecayRule"]
