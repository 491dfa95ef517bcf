"""The nearest (semi-)orthogonal matrix: which chain runs for which matrix, and in which precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from . import dispatch
from .chain import LastProduct, gram_chain, standard_chain
from .coefficients import ORIGINAL, Coefficients, Row, resolve_coefficients
from .ops import chains
from .preconditioning import Preconditioning, aol, check_preconditioning, lift
from .program import BUFFER_FIELDS, Program, ProgramBuilder, rows_of, view
from .squaring import squaring_chain
from .svd import polar_factor
from .workspace import empty_batch, padded

Method = Literal["auto", "standard", "gram", "squaring", "svd"]
METHODS = get_args(Method)

DEFAULT_EPS = 1e-7
DEFAULT_STEPS = 5
COMPUTE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

GRAM_ASPECT_RATIO = 1.5
"""From this cols / rows on, five steps of the Gram chain need no more FLOPs than the standard chain, when every product
is a full one: (28 + 8s) against (10 + 20s) m^3 in units of 2 FLOPs. In bfloat16 "auto" keeps the standard chain: there
the Gram chain's error is up to 2.6 times the standard chain's (256 x 1024; see tests/test_chain.py)."""


@torch.no_grad()
def orthogonalize(
    G: Tensor,
    *,
    method: Method = "auto",
    ns_coefficients: Coefficients = ORIGINAL,
    ns_steps: int = DEFAULT_STEPS,
    eps: float = DEFAULT_EPS,
    safety_factor: float = 1.0,
    preconditioning: Preconditioning = "frobenius",
    compute_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Replaces every singular value of G by (about) one: U S V^T becomes U p(S) V^T.

    Args:
        G: [..., rows, cols], real floating, any strides. Not differentiated through, not modified.
        method: "standard" or "gram" Newton-Schulz chain (the same polynomial), "auto" for the cheaper of the two;
            "squaring" for a polynomial of its own in fewer products (`muon_kernels.squaring`); "svd" for the exact
            polar factor (null directions stay null).
        ns_coefficients: preset name, (a, b, c) or a list of them; see `muon_kernels.coefficients.PRESETS`.
        ns_steps: length of the chain; 0 only normalises.
        eps: G is divided by max(safety_factor * ||G||_F, eps): a clamp as in torch.optim.Muon. A zero matrix stays
            zero whatever eps is.
        safety_factor: the norm is taken this much larger.
        preconditioning: what a chain starts from: G divided by its Frobenius norm, or "aol", its rows (of a tall G its
            columns) rescaled as well, which needs fewer steps and has another limit (`muon_kernels.preconditioning`);
            made for `ns_coefficients="turbo", ns_steps=4`.
        compute_dtype: precision of the products; default `default_compute_dtype(G.device)`.
        out_dtype: dtype of the result; default that of G.

    Returns:
        A new tensor of G's shape. A matrix with a NaN or an infinity becomes all NaN; others are unaffected.

    Raises:
        TypeError, ValueError: an argument that is out of its range, by name.
    """
    if not G.is_floating_point():
        raise TypeError(f"G must be real floating point, got {G.dtype}")
    if G.ndim < 2:
        raise ValueError(f"G must have at least two dimensions, got shape {list(G.shape)}")
    rows = resolve_coefficients(ns_coefficients, ns_steps)
    check_coefficients(method, ns_coefficients, ns_steps)
    compute = compute_dtype or default_compute_dtype(G.device)
    check_options(method, eps, safety_factor, compute)
    check_preconditioning(preconditioning, method)
    out = torch.empty(G.shape, dtype=out_dtype or G.dtype, device=G.device)
    if G.numel() == 0:
        return out
    matrices = G.resolve_neg().reshape(-1, *G.shape[-2:])
    into = out.view(matrices.shape)
    if method == "svd":
        into.copy_(polar_factor(matrices))
        return out
    groups = ((matrices.shape[0], matrices.shape[1], matrices.shape[2]),)
    norm = {"eps": eps, "safety_factor": safety_factor}
    if preconditioning == "frobenius" and compute == torch.float16:
        plan = chain_plan(groups, rows, method, compute, True)
        whole = None if None in plan.factors else dispatch.whole("orthogonalize", [[matrices], [into]])
        if whole and all(whole(plan, [matrices], [into], **norm)):
            return out
    chain = Orthogonalizer(
        groups,
        rows,
        method=method,
        preconditioning=preconditioning,
        compute_dtype=compute,
        device=G.device,
        factored=True,
        **norm,
    )
    if chain.factored:
        dispatch.run("gemm_add", *chain.factors([matrices], None), [], [into], alpha=1.0, beta=0.0)
    else:
        (result,) = chain.run([matrices], None)
        into.copy_(result)
    return out


class Orthogonalizer:
    """The chains of one wave: scratch memory, and the program that runs on it. `orthogonalize` and `Muon` share it.

    Args:
        groups: (count, rows, cols) of each batch of matrices; every number at least 1.
        rows: resolved coefficients, one (a, b, c) a step.
        method, preconditioning, eps, safety_factor: see `orthogonalize`.
        compute_dtype: dtype of the scratch memory and of the result (of "svd": float32 or float64).
        factored: leave the last product to the caller, if every chain ends with one (in float16, but for "svd").

    Attributes:
        factored: whether that is so: `factors` is to be called, otherwise `run`.
        plan, workspace: the program and the buffers on it, and its scratch memory (of "svd": None, and not there).
    """

    def __init__(
        self,
        groups: Sequence[tuple[int, int, int]],
        rows: Sequence[Row],
        *,
        method: Method,
        compute_dtype: torch.dtype,
        device: torch.device,
        preconditioning: Preconditioning = "frobenius",
        eps: float = DEFAULT_EPS,
        safety_factor: float = 1.0,
        factored: bool = False,
    ) -> None:
        self._eps, self._safety_factor = eps, safety_factor
        self._raw_dtype = raw_dtype(compute_dtype)
        self.plan: ChainPlan | None = None
        self.factored = False
        self._preconditioning = preconditioning
        if method == "svd":
            self._unplanned = [empty_batch(*group, self._raw_dtype, device) for group in groups]
        else:
            self.plan = chain_plan(tuple(groups), tuple(rows), method, compute_dtype, factored)
            self.factored = None not in self.plan.factors
            self.workspace = torch.empty(self.plan.program.elements, dtype=compute_dtype, device=device)

    @property
    def inputs(self) -> list[Tensor]:
        """One [count, rows, cols] a group, uninitialised: where the matrices may be put (elsewhere is as good). In
        `raw_dtype`."""
        if self.plan is None:
            return self._unplanned
        # One view of another dtype for all: torch.compile takes two for tensors that share no memory (torch 2.13).
        raw = self.workspace.view(self._raw_dtype)
        return [view(raw, buffer) for buffer in self.plan.inputs]

    @property
    def normalised(self) -> list[Tensor]:
        """One [count, rows, cols] a group, where the normalised matrices go; not of "svd". In the compute dtype."""
        assert self.plan is not None
        return [view(self.workspace, buffer) for buffer in self.plan.normalised]

    def factors(
        self, matrices: Sequence[Tensor], sumsq: Tensor | None, into: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Everything but the last product: problem lists a and b, views of the scratch memory, whose products a[i] b[i]
        are the matrices orthogonalised. Arguments as of `run`."""
        assert self.plan is not None and self.factored
        self._run(self.plan, matrices, sumsq, into)
        return self.plan.last_products(self.workspace)

    def run(
        self, matrices: Sequence[Tensor], sumsq: Tensor | None, into: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Orthogonalises `matrices`, a problem list in the order and of the shapes of the groups.

        Args:
            sumsq: float64 [total number of matrices], their squared Frobenius norms; None to compute them.
            into: for `matrices` that are pieces of those of the groups, each with the squared norm of its whole:
                a problem list like them in shape, the parts of `normalised` that they are. Not with "svd".

        Returns:
            A problem list of the groups: views of the scratch memory (of "svd": new tensors).
        """
        assert not self.factored
        if self.plan is None:
            assert into is None
            return [polar_factor(x) for x in matrices]
        self._run(self.plan, matrices, sumsq, into)
        return [view(self.workspace, buffer) for buffer in self.plan.xs]

    def _run(
        self, plan: ChainPlan, matrices: Sequence[Tensor], sumsq: Tensor | None, into: Sequence[Tensor] | None
    ) -> None:
        xs = self.normalised
        outs = xs if into is None else into
        dispatch.run("normalize", matrices, sumsq, outs, eps=self._eps, safety_factor=self._safety_factor)
        if self._preconditioning == "aol":
            program, grams = _gram_plan(plan.normalised, plan.program.elements, self.workspace.dtype)
            chains(self.workspace, program)
            aol(xs, [view(self.workspace, buffer) for buffer in grams], safety_factor=self._safety_factor)
        chains(self.workspace, plan.program)


def scratch_bytes(rows: int, cols: int, steps: Sequence[Row], *, method: Method, compute_dtype: torch.dtype) -> int:
    """Scratch memory that an `Orthogonalizer` takes for one [rows, cols] matrix."""
    if method == "svd":
        return rows * padded(cols, compute_dtype.itemsize) * compute_dtype.itemsize
    plan = chain_plan(((1, rows, cols),), tuple(steps), method, compute_dtype, False)
    return plan.program.elements * compute_dtype.itemsize


@dataclass(frozen=True, eq=False)  # equal by identity: a hash of all numbers takes as long as a small launch
class ChainPlan:
    """A program, and per group the BUFFER_FIELDS of buffers.

    program: the chains.
    normalised: where the normalised X goes.
    inputs: its scratch twin, which follows it.
    factors, xs: the operands of the last product; xs is the result where there is no factor.
    """

    program: Program
    normalised: tuple[Sequence[int], ...]
    inputs: tuple[Sequence[int], ...]
    factors: tuple[Sequence[int] | None, ...]
    xs: tuple[Sequence[int], ...]

    def last_products(self, workspace: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Problem lists a and b, views of the workspace: what the chains leave to be multiplied, if all of them do."""
        left, right = [], []
        for x, factor in zip(self.xs, self.factors, strict=True):
            assert factor is not None
            p, q = view(workspace, factor), view(workspace, x)
            tall = q.shape[1] > q.shape[2]
            left.append(q if tall else p)
            right.append(p.mT if tall else q)
        return left, right


@lru_cache(maxsize=256)
def chain_plan(
    groups: tuple[tuple[int, int, int], ...],
    rows: tuple[Row, ...],
    method: Method,
    compute_dtype: torch.dtype,
    factored: bool,
) -> ChainPlan:
    """The chains of an `Orthogonalizer` with these arguments; not for "svd"."""
    build = ProgramBuilder(compute_dtype.itemsize)
    half = compute_dtype == torch.float16
    chosen: list[tuple[Sequence[int] | None, ...]] = []
    for count, height, width in groups:
        build.chain(count)
        first = len(build.buffers)
        x, spare = (build.buffer(height, width) for _ in range(2))
        wide, wide_spare = (x.mT, spare.mT) if height > width else (x, spare)
        chain = resolve_method(method, height, width, len(rows), compute_dtype)
        if chain == "gram":
            last = gram_chain(build, wide, wide_spare, rows)
        elif chain == "squaring":
            last = squaring_chain(build, wide, wide_spare)
        else:
            last = standard_chain(build, wide, wide_spare, rows, whole_factor=half)
        if last.factor is not None and not (factored and half):  # in float16 alone do all chains end with a product
            build.gemm_add(last.factor, last.x, last.spare)
            last = LastProduct(None, last.spare, last.x)
        buffers = rows_of(build.buffers[first:], BUFFER_FIELDS)
        operands = (x, spare, last.factor, last.x)
        chosen.append(tuple(None if operand is None else tuple(buffers[operand.buffer]) for operand in operands))
    return ChainPlan(build.build(), *zip(*chosen, strict=True))


@lru_cache(maxsize=256)
def _gram_plan(
    normalised: tuple[tuple[int, ...], ...], elements: int, dtype: torch.dtype
) -> tuple[Program, list[Sequence[int]]]:
    """What AOL preconditioning wants of every X of a plan: `lift` times the Gram matrix of its smaller side, and the
    BUFFER_FIELDS of these, in the memory of X's scratch twin."""
    build = ProgramBuilder(dtype.itemsize)
    grams = []
    for offset, count, height, width, *_ in normalised:
        build.elements = offset  # the same buffers, at the same place
        build.chain(count)
        x, spare = (build.buffer(height, width) for _ in range(2))
        (gram,) = build.carve(spare, min(height, width), 1)
        wide = x.mT if height > width else x
        build.symm_gemm(wide, wide.mT, gram, alpha=lift(dtype))
        grams.append(rows_of(build.buffers, BUFFER_FIELDS)[-1])
    return replace(build.build(), elements=elements), grams


def resolve_method(
    method: Method, height: int, width: int, steps: int, compute_dtype: torch.dtype
) -> Literal["standard", "gram", "squaring"]:
    """The chain for a shape: the one that was named, or with "auto" the one with fewer FLOPs at equal accuracy."""
    if method == "auto":
        aspect = max(height, width) / min(height, width)
        gram = steps > 1 and aspect >= GRAM_ASPECT_RATIO and compute_dtype != torch.bfloat16
        return "gram" if gram else "standard"
    if method == "svd":
        raise ValueError(f"method '{method}' is not a Newton-Schulz chain")
    return method


# Asked once: torch.compile would break the graph at these questions.
_CPU_COMPUTE_DTYPE = (
    torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else torch.float32
)


def default_compute_dtype(device: torch.device) -> torch.dtype:
    """float16 on CUDA; on the CPU bfloat16 where the processor multiplies it natively, else float32.

    Normalised matrices and everything derived from them stay far inside float16's range, and its three more mantissa
    bits make it more accurate than bfloat16 here.
    """
    if device.type == "cuda":
        return torch.float16
    return _CPU_COMPUTE_DTYPE if device.type == "cpu" else torch.bfloat16


def raw_dtype(compute_dtype: torch.dtype) -> torch.dtype:
    """What matrices wait in for their chain: float16 has too little range for what is not normalised yet."""
    return torch.bfloat16 if compute_dtype == torch.float16 else compute_dtype


def check_coefficients(method: str, coefficients: Coefficients, steps: int) -> None:
    """Raises ValueError if `method` has a polynomial of its own and another one is asked for."""
    if method != "squaring":
        return
    for name, value, default in (("ns_coefficients", coefficients, ORIGINAL), ("ns_steps", steps, DEFAULT_STEPS)):
        if value != default:
            raise ValueError(
                f"method 'squaring' has coefficients of its own: {name} must be left at {default}, got {value!r}"
            )


def check_options(method: str, eps: float, safety_factor: float, compute_dtype: torch.dtype) -> None:
    """Raises ValueError for a chain option out of its range."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if not eps >= 0.0:
        raise ValueError(f"eps must be >= 0, got {eps}")
    if not 1.0 <= safety_factor < float("inf"):
        raise ValueError(f"safety_factor must be >= 1 and finite, got {safety_factor}")
    if compute_dtype not in COMPUTE_DTYPES:
        raise ValueError(f"compute_dtype must be one of {', '.join(map(str, COMPUTE_DTYPES))}, got {compute_dtype}")
