"""Which weights are output layers of a model."""

from __future__ import annotations

import re

from torch import nn
from torch.nn.parameter import is_lazy

HEAD_NAMES = ("head", "heads", "lm_head", "classifier", "fc", "fc_out", "score", "embed_out", "unembed", "output")
"""Names of modules that hold a model's output layer, unless they lie in a numbered block."""

EMBEDDING_CLASS = re.compile(r"Embeddings?(Bag)?$")


def heads_of(model: nn.Module) -> set[int]:
    """The ids of the weights of output layers."""
    declared = getattr(model, "get_output_embeddings", None)
    output = declared() if callable(declared) else None
    if output is not None:
        return {id(output.weight)}
    found: set[int] = set()
    roots: list[str] = []
    for path, module in model.named_modules():
        *above, name = path.split(".")
        inside = any(path.startswith(root + ".") for root in roots)
        if name in HEAD_NAMES and not inside and not any(part.isdigit() for part in above):
            roots.append(path)
            branches = module.children() if isinstance(module, (nn.ModuleList, nn.ModuleDict)) else [module]
            found |= {id(layers[-1][1].weight) for layers in map(_layers, branches) if layers}
    if found:
        return found
    layers = _layers(model)
    if layers and not any(part.isdigit() for part in layers[-1][0].split(".")[:-1]):
        return {id(layers[-1][1].weight)}
    return set()


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules that hold a weight of two dimensions or more, with their paths: linear layers and convolutions."""
    return [
        (path, module)
        for path, module in model.named_modules()
        if not EMBEDDING_CLASS.search(type(module).__name__)
        for name, param in module.named_parameters(recurse=False)
        if name == "weight" and not is_lazy(param) and param.ndim >= 2
    ]
