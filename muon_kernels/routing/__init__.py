"""Which parameters Muon steps, as which matrices, and why: parameter groups for `Muon` from a model or from shapes."""

from .groups import param_groups_for
from .rules import shape_reason

__all__ = ["param_groups_for", "shape_reason"]
