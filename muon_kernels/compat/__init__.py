"""Names, arguments and checkpoints of other Muon packages, on top of `muon_kernels.Muon`.

- `muon_kernels.compat.torch`: torch.optim.Muon and the two helpers of its module that other code imports
- `muon_kernels.compat.keller_jordan`: the four classes and three functions of github.com/KellerJordan/Muon
- `muon_kernels.compat.gram_newton_schulz`: everything that gram-newton-schulz 0.1.6 exports
- `muon_kernels.compat.timm`: `register()` puts `Muon` into timm's registry
- the functions below: their checkpoints, timm's too, into ours, and ours into torch's; `build_muon`, the optimizer of a
  whole model in one call, for configuration files

docs/migrating.md lists what differs. All of it leaves `p.grad` alone, and a checkpoint restores every hyper-parameter.
"""

from .build import build_muon
from .export import to_torch
from .loading import load_by_parameter
from .states import dequantized, from_gram_newton_schulz, from_keller_jordan, from_timm, merge_ranks

__all__ = [
    "build_muon",
    "dequantized",
    "from_gram_newton_schulz",
    "from_keller_jordan",
    "from_timm",
    "load_by_parameter",
    "merge_ranks",
    "to_torch",
]
