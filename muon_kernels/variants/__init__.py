"""Variants of Muon as parts that compose: what happens to an orthogonalised update before it reaches its parameter,
and in which form momenta and parameters are stored.

- `NorMuon`, `AdaMuon`: normalisers, which divide the update by the root of a running second moment
- the rules of weight decay, by name: "decoupled" or "cautious"
- `Int8Momentum`: a momentum store, one byte an element
- the roundings of a parameter, by name: "nearest" or "stochastic"
- `QKClip`: a hook that keeps attention logits below a bound
"""

from .int8_momentum import Int8Momentum
from .normalizers import AdaMuon, Normalizer, NorMuon
from .qk_clip import QKClip
from .rounding import Rounding
from .weight_decay import WeightDecayRule

__all__ = ["AdaMuon", "Int8Momentum", "NorMuon", "Normalizer", "QKClip", "Rounding", "WeightDecayRule"]
