"""Exact Hessians of small problems through torch.func."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

LARGEST_SIZE = 8192
"""A dense float32 Hessian of this size takes 256 MiB."""

CHUNK = 32
"""Columns at a time: for each of them a function may need several copies of all that it holds."""


def hessian(function: Callable[..., Tensor], *variables: Tensor) -> Tensor:
    """The Hessian [n, n] of a scalar function of tensors that hold n elements together, in their order.

    Args:
        function: takes the tensors, returns a scalar; written in torch, differentiable twice.
        variables: of one floating dtype, which the result has; n at most 8192.

    Raises:
        ValueError: n is too large.
    """
    sizes = [v.numel() for v in variables]
    if not 0 < sum(sizes) <= LARGEST_SIZE:
        raise ValueError(f"variables must hold 1 to {LARGEST_SIZE} elements together, got {sum(sizes)}")

    def of_vector(flat: Tensor) -> Tensor:
        return function(*(part.view_as(v) for part, v in zip(flat.split(sizes), variables, strict=True)))

    flat = torch.cat([v.detach().flatten() for v in variables])
    gradient = torch.func.grad(of_vector)
    column = torch.func.vmap(lambda direction: torch.func.jvp(gradient, (flat,), (direction,))[1], chunk_size=CHUNK)
    with torch.no_grad():  # what the function holds may require gradients: each chunk would keep all that it computed
        return column(torch.eye(len(flat), dtype=flat.dtype, device=flat.device)).mT


def hessian_eigenvalues(function: Callable[..., Tensor], *variables: Tensor) -> Tensor:
    """The eigenvalues [n] of `hessian`, ascending."""
    matrix = hessian(function, *variables)
    return torch.linalg.eigvalsh((matrix + matrix.mT) / 2)


def loss_hessian_eigenvalues(
    model: nn.Module, loss: Callable[[Tensor], Tensor], inputs: Tensor, parameters: Sequence[str] | None = None
) -> Tensor:
    """Eigenvalues of the loss's Hessian in a model's parameters.

    Args:
        model: a small network; its parameters are not changed.
        loss: from the model's output to a scalar.
        inputs: what the model is called with.
        parameters: names of those to differentiate by; default: all that require a gradient.

    Raises:
        KeyError: a name that the model does not have.
        ValueError: more than 8192 elements.
    """
    every = {name: p.detach() for name, p in model.named_parameters()}
    names = [name for name, p in model.named_parameters() if p.requires_grad] if parameters is None else parameters

    def function(*values: Tensor) -> Tensor:
        given = every | dict(zip(names, values, strict=True))
        return loss(torch.func.functional_call(model, given, (inputs,)))

    return hessian_eigenvalues(function, *(every[name] for name in names))
