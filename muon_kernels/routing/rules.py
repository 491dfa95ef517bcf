"""The rules, in the order in which they are asked: flags, the module that holds a parameter, its shape."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..matrices import Layout
from .heads import EMBEDDING_CLASS
from .items import Item

MIN_DIM_SIZE = 4
MAX_ASPECT_RATIO = 128.0

EMBEDDING_WORDS = ("emb", "embed", "embedding", "embeddings", "token", "tokens")
"""Words, between underscores, of a parameter's own name that make it an embedding: `pos_embed`, `cls_token`."""

_NORM_CLASS = re.compile(r"Norm(\dd)?$")


class Route(NamedTuple):
    """Where a parameter goes, as which matrices, and the word that `Muon.explain()` shows for it."""

    use_muon: bool
    reason: str
    layout: Layout = None


def shape_reason(
    shape: Sequence[int], min_dim_size: int = MIN_DIM_SIZE, max_aspect_ratio: float = MAX_ASPECT_RATIO
) -> str:
    """Why a parameter of this shape is not for Muon, or "ok". Rules and words are those of timm 1.0.22.

    Three dimensions and more count as the matrix [shape[0], product of the rest]. The reasons: "insufficient_dims"
    (fewer than two dimensions above 1), "leading_unit_dims" (one of the first two is 1), "min_dim_too_small:n" (the
    shorter side, n, is below `min_dim_size`), "extreme_aspect_ratio:r" (longer over shorter side, r, is above
    `max_aspect_ratio`).
    """
    if sum(n > 1 for n in shape) < 2:
        return "insufficient_dims"
    if shape[0] == 1 or shape[1] == 1:
        return "leading_unit_dims"
    shorter, longer = sorted((shape[0], math.prod(shape[1:])))
    if shorter < min_dim_size:
        return f"min_dim_too_small:{shorter}"
    if longer > max_aspect_ratio * shorter:
        return f"extreme_aspect_ratio:{longer / shorter:.1f}"
    return "ok"


class Patterns:
    """Patterns of parameter names and what they stand for; the last that matches wins."""

    def __init__(self, argument: str, patterns: Mapping[str, Any] | None, items: Sequence[Item]) -> None:
        if patterns is not None and not isinstance(patterns, Mapping):
            raise TypeError(f"{argument} must be None or a mapping of name patterns, got {patterns!r}")
        self.patterns = dict(patterns or {})
        for pattern in self.patterns:
            if not any(fnmatchcase(item.name, pattern) for item in items):
                raise ValueError(f"{argument} must hold patterns of parameter names, {pattern!r} matches none")

    def last_match(self, name: str, default: Any = None) -> Any:
        matches = [value for pattern, value in self.patterns.items() if fnmatchcase(name, pattern)]
        return matches[-1] if matches else default


def flagged(item: Item, flags: Patterns) -> Route | None:
    """What the user said: the last pattern that matches, else the flags of the parameter's own group."""
    pattern = flags.last_match(item.name)
    if pattern is not None:
        return Route(bool(pattern), "use_muon_pattern", _layout(item))
    if item.options.get("use_fallback", False):
        return Route(False, "use_fallback_flag")
    if "use_muon" in item.options:
        return Route(bool(item.options["use_muon"]), "use_muon_flag", _layout(item))
    return None


def by_module(item: Item, heads: set[int]) -> Route | None:
    """What the modules that own the parameter, and its name, say; None leaves it to the shape."""
    words = {word for owner in item.owners for word in owner.name.split("_")}
    classes = [type(owner.module).__name__ for owner in item.owners]
    embedding_owner = any(isinstance(o.module, (nn.Embedding, nn.EmbeddingBag)) for o in item.owners)
    if "bias" in words:
        return Route(False, "bias")
    if any(_NORM_CLASS.search(name) for name in classes):
        return Route(False, "norm")
    if embedding_owner or any(map(EMBEDDING_CLASS.search, classes)) or words & set(EMBEDDING_WORDS):
        return Route(False, "embedding")
    if id(item.param) in heads:
        return Route(False, "head")
    return None


def by_shape(item: Item, min_dim_size: int, max_aspect_ratio: float) -> Route:
    """What `shape_reason` says of the parameter, or of its matrices if it is a batch."""
    layout, shape = _layout(item), item.param.shape
    if layout == "batch" and shape[0] > 1:
        shape = shape[-2:]
    reason = shape_reason(shape, min_dim_size, max_aspect_ratio)
    return Route(reason == "ok", reason, layout)


def _layout(item: Item) -> Layout:
    modules = [owner.module for owner in item.owners]
    if item.param.ndim == 2:
        if any(isinstance(o.module, nn.MultiheadAttention) and o.name == "in_proj_weight" for o in item.owners):
            return "qkv"
        return "transposed" if any(type(module).__name__ == "Conv1D" for module in modules) else None
    if item.param.ndim < 2:
        return None
    return "flatten" if not modules or any(isinstance(m, _ConvNd) for m in modules) else "batch"
