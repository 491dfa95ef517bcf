"""Experimental: Muon with moments of low rank, and a rank that follows the loss."""

from .optimizer import LowRankMuon
from .rank import decide_rank

__all__ = ["LowRankMuon", "decide_rank"]
