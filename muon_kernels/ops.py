"""Every op as a function that checks its arguments.

All ops write into tensors that the caller owns, return nothing and work on lists: one call serves a whole bucket.
A *problem list* is a list of 3-D tensors [batch, rows, cols] whose entries may differ in shape and strides.
Within a list all tensors have one dtype; all tensors of a call are on one device (scalars may be on the CPU).
`muon_kernels.dispatch` runs them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import dispatch
from .negated import check_not_negated
from .program import Program


def prologue(
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    outs: Sequence[Tensor],
    sumsq: Tensor,
    *,
    momentum: float,
    nesterov: bool = True,
    ema: bool = True,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Momentum, Nesterov, cast and sum of squares of many tensors, in one pass over memory.

    With g = ±grad / grad_scale:  m <- lerp(m, g, 1 - momentum) if `ema` else momentum * m + g, rounded to the
    momentum's dtype;  out <- (lerp(g, m, momentum) if `ema` else g + momentum * m) if `nesterov` else m;
    sumsq[i] <- sum of squares of out as stored, accumulated in float64. Gradients are not written.

    Args:
        grads: N tensors of any shape and floating dtype.
        momenta: N tensors like `grads` in shape, updated in place.
        outs: N tensors like `grads` in shape, overwritten.
        sumsq: float64 [N], overwritten.
        momentum: in [0, 1).
        nesterov: look ahead by one step.
        ema: average (torch.optim.Muon, Keller Jordan) or, if False, the classical sum (gram-newton-schulz, dion).
        maximize: negate the gradients.
        grad_scale: one float32 that the gradients are divided by (torch.amp.GradScaler).
        found_inf: one float32; nonzero leaves every momentum as it was and makes the outs zero.

    Raises:
        TypeError, ValueError: a list whose length, shape, dtype or device does not fit; nothing has been changed.
    """
    _check_lists(grads=grads, momenta=momenta, outs=outs)
    _check_same_shapes(grads=grads, momenta=momenta, outs=outs)
    if sumsq.shape != (len(grads),) or sumsq.dtype != torch.float64:
        raise ValueError(f"sumsq must be float64 [{len(grads)}], got {sumsq.dtype} {list(sumsq.shape)}")
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")
    _check_scalar("grad_scale", grad_scale)
    _check_scalar("found_inf", found_inf)
    if grads:
        dispatch.run(
            "prologue",
            grads,
            momenta,
            outs,
            sumsq,
            momentum=momentum,
            nesterov=nesterov,
            ema=ema,
            maximize=maximize,
            grad_scale=grad_scale,
            found_inf=found_inf,
        )


def sum_squares(xs: Sequence[Tensor], sumsq: Tensor) -> None:
    """sumsq[i] <- the squared Frobenius norm of matrix i, summed in float64.

    Args:
        xs: problem list.
        sumsq: float64 [total number of matrices], overwritten, in the order of the list.
    """
    _check_lists(xs=xs)
    _check_problems(xs=xs)
    _check_sumsq(sumsq, xs)
    if xs:
        dispatch.run("sum_squares", xs, sumsq)


def normalize(
    xs: Sequence[Tensor], sumsq: Tensor | None, outs: Sequence[Tensor], *, eps: float, safety_factor: float = 1.0
) -> None:
    """out <- x / max(safety_factor * sqrt(sumsq), eps) for every matrix of every problem.

    A matrix whose norm is zero (or below float32's smallest normal number) becomes zero, one whose norm is not
    finite becomes NaN.

    Args:
        xs: problem list.
        sumsq: float64 [total number of matrices], in the order of the list; None for the squared Frobenius norms of
            `xs`, as `sum_squares` defines them.
        outs: problem list like `xs` in shape, of any floating dtype, overwritten; no memory shared with `xs`.
        eps: lower bound (a clamp, not a summand) of the divisor.
        safety_factor: the norm is taken this much larger.
    """
    _check_lists(xs=xs, outs=outs)
    _check_same_shapes(xs=xs, outs=outs)
    _check_problems(xs=xs)
    if sumsq is not None:
        _check_sumsq(sumsq, xs)
    if xs:
        dispatch.run("normalize", xs, sumsq, outs, eps=eps, safety_factor=safety_factor)


def symm_gemm(
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    c: Sequence[Tensor],
    outs: Sequence[Tensor],
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
    delta: float = 0.0,
) -> None:
    """out <- alpha a b + beta c + delta I, for products that the caller knows to be symmetric.

    The kernels compute one triangle and store its mirror image, so that their result is bitwise symmetric.

    Args:
        a: problem list, entries [batch, m, k].
        b: problem list, entries [batch, k, m].
        c: problem list, entries [batch, m, m] and symmetric, or an empty list for no summand.
        outs: problem list, entries [batch, m, m], overwritten; no memory shared with the other lists.
        alpha, beta, delta: factors of the product, of c and of the identity.
    """
    _check_gemm(a, b, c, outs)
    for i, out in enumerate(outs):
        if out.shape[1] != out.shape[2]:
            raise ValueError(f"outs[{i}] must hold square matrices, got {list(out.shape)}")
    if outs:
        dispatch.run("symm_gemm", a, b, c, outs, alpha=alpha, beta=beta, delta=delta)


def gemm_add(
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    c: Sequence[Tensor],
    outs: Sequence[Tensor],
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> None:
    """out <- alpha a b + beta c.

    Args:
        a: problem list, entries [batch, m, k].
        b: problem list, entries [batch, k, n].
        c: problem list, entries [batch, m, n], or an empty list for no summand.
        outs: problem list, entries [batch, m, n], overwritten; no memory shared with the other lists. Its dtype may
            differ from that of the operands: a kernel may then round to the operands' dtype first.
        alpha, beta: factors of the product and of c.
    """
    _check_gemm(a, b, c, outs)
    if outs:
        dispatch.run("gemm_add", a, b, c, outs, alpha=alpha, beta=beta)


def gemm_apply(
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    params: Sequence[Tensor],
    *,
    lr: float | Tensor,
    weight_decay: float = 0.0,
    scales: Sequence[float],
    found_inf: Tensor | None = None,
) -> None:
    """p <- (1 - lr * weight_decay) p - lr * scale * a b: `apply` with products that need not be stored.

    The products are rounded to the operands' dtype first: the result has the bits of `gemm_add` and `apply`.

    Args:
        a: problem list, entries [batch, m, k].
        b: problem list, entries [batch, k, n].
        params: as many [m, n] as there are matrices in `a`, in their order, of any floating dtype, updated in place.
        lr, weight_decay, scales, found_inf: as of `apply`.
    """
    _check_lists(a=a, b=b)
    _check_problems(a=a, b=b)
    shapes = []
    for i, (left, right) in enumerate(zip(a, b, strict=True)):
        batch, m, k = left.shape
        if right.shape[:2] != (batch, k):
            raise ValueError(f"b[{i}] must be [{batch}, {k}, n] to follow a[{i}], got {list(right.shape)}")
        shapes += [(m, right.shape[2])] * batch
    if len(params) != len(shapes):
        raise ValueError(f"params must have one entry for each of the {len(shapes)} matrices of a, got {len(params)}")
    _check_lists(params=params)
    if params and params[0].device != a[0].device:
        raise ValueError(f"params must be on {a[0].device} like a[0], got {params[0].device}")
    for i, (param, shape) in enumerate(zip(params, shapes, strict=True)):
        if param.shape != shape:
            raise ValueError(f"params[{i}] must be {list(shape)}, got {list(param.shape)}")
    rate = _check_step(params, lr, scales, found_inf)
    if params:
        dispatch.run("gemm_apply", a, b, params, lr=rate, weight_decay=weight_decay, scales=scales, found_inf=found_inf)


def chains(workspace: Tensor, program: Program) -> None:
    """Runs a program of products on the buffers of `workspace`.

    A kernel computes one triangle of a symmetric product and mirrors it, so that the result is bitwise symmetric.

    Args:
        workspace: contiguous [program.elements] in a floating dtype, overwritten; it starts on 16 bytes.
        program: see `muon_kernels.program`; ValueError if its `elements` have no room for its buffers and counters.
    """
    if workspace.shape != (program.elements,) or not workspace.is_contiguous():
        raise ValueError(
            f"workspace must be contiguous [{program.elements}], got {list(workspace.shape)}, "
            f"strides {workspace.stride()}"
        )
    _check_lists(workspace=[workspace])
    needed = program.elements_needed(workspace.element_size())
    if program.elements < needed:
        raise ValueError(
            f"program.elements must be at least {needed}, the end of its buffers ({program.end}) and counters behind, "
            f"got {program.elements}"
        )
    if program.products:
        dispatch.run(
            "chains",
            [workspace],
            buffers=program.buffers,
            products=program.products,
            scalars=program.scalars,
            chains=program.chains,
        )


def apply(
    params: Sequence[Tensor],
    updates: Sequence[Tensor],
    *,
    lr: float | Tensor,
    weight_decay: float = 0.0,
    scales: Sequence[float],
    found_inf: Tensor | None = None,
) -> None:
    """p <- (1 - lr * weight_decay) p - lr * scale * update for many tensors; each p is rounded once.

    Args:
        params: N tensors of any shape and floating dtype, updated in place.
        updates: N tensors like `params` in shape.
        lr: a float, or a one-element tensor. One on the parameters' device is read by the kernel (no
            synchronisation; a captured CUDA graph sees later changes), one on the CPU is read when this is called.
        weight_decay: decoupled weight decay.
        scales: N factors, the shape-dependent part of the step length.
        found_inf: one float32; nonzero leaves every parameter as it was.
    """
    _check_lists(params=params, updates=updates)
    _check_same_shapes(params=params, updates=updates)
    rate = _check_step(params, lr, scales, found_inf)
    if params:
        dispatch.run("apply", params, updates, lr=rate, weight_decay=weight_decay, scales=scales, found_inf=found_inf)


def _check_step(
    params: Sequence[Tensor], lr: float | Tensor, scales: Sequence[float], found_inf: Tensor | None
) -> Tensor:
    """lr as a tensor."""
    if len(scales) != len(params):
        raise ValueError(f"scales must have {len(params)} entries, got {len(scales)}")
    rate = dispatch.rate_tensor(lr)
    _check_scalar("lr", rate)
    _check_scalar("found_inf", found_inf)
    return rate


def _check_sumsq(sumsq: Tensor, xs: Sequence[Tensor]) -> None:
    matrices = sum(x.shape[0] for x in xs)
    if sumsq.shape != (matrices,) or sumsq.dtype != torch.float64:
        raise ValueError(f"sumsq must be float64 [{matrices}], got {sumsq.dtype} {list(sumsq.shape)}")


def _check_lists(**lists: Sequence[Tensor]) -> None:
    """Equal lengths, one floating dtype a list, one device over all, nothing that torch negates as it reads it."""
    first_name, first = next(iter(lists.items()))
    for name, tensors in lists.items():
        if len(tensors) != len(first):
            raise ValueError(f"{name} must have as many entries as {first_name}, {len(first)}, got {len(tensors)}")
        if not tensors:
            continue
        dtypes = {tensor.dtype for tensor in tensors}
        if len(dtypes) > 1 or not tensors[0].is_floating_point():
            raise TypeError(f"{name} must have one real floating dtype, got {', '.join(sorted(map(str, dtypes)))}")
        devices = {tensor.device for tensor in tensors}
        if devices != {first[0].device}:
            found = ", ".join(sorted(map(str, devices)))
            raise ValueError(f"{name} must be on {first[0].device} like {first_name}[0], got {found}")
        for i, tensor in enumerate(tensors):
            check_not_negated(f"{name}[{i}]", tensor)


def _check_same_shapes(**lists: Sequence[Tensor]) -> None:
    (first_name, first), *others = lists.items()
    shapes = [tensor.shape for tensor in first]
    for name, tensors in others:
        found = [tensor.shape for tensor in tensors]
        if found != shapes:
            i = next(i for i, (a, b) in enumerate(zip(found, shapes, strict=True)) if a != b)
            raise ValueError(
                f"{name}[{i}] must have the shape of {first_name}[{i}], {list(shapes[i])}, got {list(found[i])}"
            )


def _check_problems(**lists: Sequence[Tensor]) -> None:
    for name, tensors in lists.items():
        for i, tensor in enumerate(tensors):
            if tensor.ndim != 3:
                raise ValueError(f"{name}[{i}] must be [batch, rows, cols], got {list(tensor.shape)}")


def _check_gemm(a: Sequence[Tensor], b: Sequence[Tensor], c: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
    _check_lists(a=a, b=b, outs=outs, **({"c": c} if c else {}))
    _check_problems(a=a, b=b, outs=outs, c=c)
    for i, (left, right, out) in enumerate(zip(a, b, outs, strict=True)):
        batch, m, k = left.shape
        if right.shape[:2] != (batch, k):
            raise ValueError(f"b[{i}] must be [{batch}, {k}, n] to follow a[{i}], got {list(right.shape)}")
        if out.shape != (batch, m, right.shape[2]):
            raise ValueError(f"outs[{i}] must be [{batch}, {m}, {right.shape[2]}], got {list(out.shape)}")
        if c and c[i].shape != out.shape:
            raise ValueError(f"c[{i}] must have the shape of outs[{i}], {list(out.shape)}, got {list(c[i].shape)}")


def _check_scalar(name: str, value: Tensor | None) -> None:
    if value is not None and value.numel() != 1:
        raise ValueError(f"{name} must have one element, got shape {list(value.shape)}")
