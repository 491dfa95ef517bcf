"""Newton-Schulz coefficients: presets as data, and the rule that turns them into one row per step.

A row (a, b, c) is one step X <- aX + (bA + cA^2)X with A = XX^T, which maps every singular value x to
ax + bx^3 + cx^5. Rows are written as published; a safety factor that a source folded into them is named in `note`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, TypeGuard

Row = tuple[float, float, float]
Coefficients = str | Sequence[float] | Sequence[Sequence[float]]

MAX_STEPS = 100
"""Exclusive upper bound on the number of steps, as in torch.optim.Muon."""


@dataclass(frozen=True)
class Preset:
    """A published list of rows.

    `tail` says what happens when more steps are asked for than there are rows: "repeat_last" continues with the last
    row; "none" refuses, because the rows were fitted together as one fixed sequence.
    """

    rows: tuple[Row, ...]
    source: str
    tail: Literal["repeat_last", "none"] = "repeat_last"
    note: str = ""


ORIGINAL: Row = (3.4445, -4.7750, 2.0315)

_POLAR_EXPRESS_UNSCALED: tuple[Row, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)


def _with_safety(rows: tuple[Row, ...], factor: float) -> tuple[Row, ...]:
    """p(x / factor) for every row, so that singular values up to `factor` stay inside the fitted interval."""
    return tuple((a / factor, b / factor**3, c / factor**5) for a, b, c in rows)


PRESETS: dict[str, Preset] = {
    "original": Preset(
        rows=(ORIGINAL,),
        source="https://kellerjordan.github.io/posts/muon/",
        note="steepest slope at zero; never converges to 1 (band 0.68..1.13)",
    ),
    "quintic": Preset(
        rows=(
            (4.0848, -6.8946, 2.9270),
            (3.9505, -6.3029, 2.6377),
            (3.7418, -5.5913, 2.3037),
            (2.8769, -3.1427, 1.2046),
            (2.8366, -3.0525, 1.2012),
        ),
        source="https://leloykun.github.io/ponder/muon-opt-coeffs/",
        note="also published as YOU_COEFFICIENTS; timm's default",
    ),
    "polar_express": Preset(
        rows=(
            (8.237312490495555, -23.157747414558198, 16.680568411445915),
            (4.082441999064835, -2.893047735332586, 0.5252849256975648),
            (3.9263479922546582, -2.8547468034765298, 0.5318022422894988),
            (3.2982187133085143, -2.424541981026706, 0.48632008358844075),
            (2.2970369434552573, -1.63662558125903, 0.4002628455953627),
            (1.8763805351440397, -1.2347896577722228, 0.35891887501668385),
            (1.8564423485617974, -1.2132449880935525, 0.3568003487825883),
            (1.8749994008682747, -1.2499988017229169, 0.3749994008546422),
        ),
        source="https://arxiv.org/abs/2505.16932 (as in timm)",
        note="solved with safety 1e-2",
    ),
    "polar_express_safer": Preset(
        rows=(
            (8.156554524902461, -22.48329292557795, 15.878769915207462),
            (4.0429299351667245, -2.808917465908704, 0.5000178451051299),
            (3.8916678022926563, -2.7724841532176825, 0.5060648178503389),
            (3.285753657755658, -2.3681294933425394, 0.46449024233003117),
            (2.3005307116270983, -1.6111665557258408, 0.3833374427545273),
            (1.8631210546382593, -1.2042160621002727, 0.3421879560523383),
            (1.8382572152247512, -1.1779263289537742, 0.3396513038637379),
            (1.8749999923301852, -1.2499999836060613, 0.374999991275876),
        ),
        source="https://arxiv.org/abs/2505.16932 (as in timm)",
        note="solved with safety 2e-2",
    ),
    "polar_express_1.05": Preset(
        rows=_with_safety(_POLAR_EXPRESS_UNSCALED, 1.05),
        source="https://arxiv.org/abs/2505.16932 (as in gram-newton-schulz 0.1.6)",
        note="the first five unscaled rows with safety factor 1.05 on each",
    ),
    "polar_express_dion": Preset(
        rows=(
            (8.156554524902461, -22.48329292557795, 15.878769915207462),
            (4.042929935166739, -2.808917465908714, 0.5000178451051316),
            (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
            (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
            (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
        ),
        source="https://arxiv.org/abs/2505.16932 (as in dion and modded-nanogpt)",
        note="solved for five steps with safety 2e-2 and cushion 2; used there with safety_factor=1.02",
    ),
    "cans": Preset(
        rows=(
            (8.4703, -25.1081, 18.6293),
            (4.1828, -3.1087, 0.5806),
            (3.9619, -2.9541, 0.5630),
            (3.2866, -2.4647, 0.5074),
            (2.2737, -1.6447, 0.4162),
        ),
        source="https://arxiv.org/abs/2506.10935 (as in Emerging-Optimizers)",
        note="no room for rounding between its steps: 20 steps of 12 x 100 diverged in bfloat16, not in float16",
    ),
    "turbo": Preset(
        rows=(
            (4.6051, -9.6552, 5.6769),
            (4.7505, -6.0861, 2.1790),
            (2.7763, -2.3190, 0.5523),
            (2.4231, -2.2861, 0.8193),
        ),
        source="https://arxiv.org/abs/2512.04632 (as in flash-newton-schulz and dion)",
        note='four steps, for preconditioning="aol"',
    ),
    "deepseek_v4": Preset(
        rows=(ORIGINAL,) * 8 + ((2.0, -1.5, 0.5),) * 2,
        source="Emerging-Optimizers, preset deepseekv4",
        tail="none",
        note="ten steps; converges to 1",
    ),
    "cubic5": Preset(
        rows=(
            (3.3656577, -3.3420992, 0.0),
            (2.5744352, -1.4957376, 0.0),
            (2.5368962, -1.4312570, 0.0),
            (2.4418906, -1.2764040, 0.0),
            (2.2230472, -0.9630650, 0.0),
        ),
        source="https://arxiv.org/abs/2606.00371",
        tail="none",
        note="cubic steps: one product fewer each",
    ),
}


def resolve_coefficients(coefficients: Coefficients, steps: int) -> tuple[Row, ...]:
    """The rows of a chain of `steps` steps.

    Args:
        coefficients: a preset name, one (a, b, c), or a sequence of (a, b, c).
        steps: number of steps, 0 <= steps < 100. Fewer than there are rows: the first `steps` rows. More: the last
            row repeats, unless the preset forbids it.

    Raises:
        TypeError: `coefficients` or one of its items is not of these forms, or `steps` is not an integer.
        ValueError: unknown preset, a row that is not three finite real numbers, an empty list, `steps` out of range.
    """
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"ns_steps must be an integer, got {steps!r}")
    if not 0 <= steps < MAX_STEPS:
        raise ValueError(f"ns_steps must be in [0, {MAX_STEPS}), got {steps}")
    return _extend(freeze_coefficients(coefficients), steps)


def freeze_coefficients(coefficients: Coefficients) -> str | Row | tuple[Row, ...]:
    """The same coefficients, validated and in a hashable form that keeps the caller's choice of form."""
    if isinstance(coefficients, str):
        if coefficients not in PRESETS:
            options = ", ".join(sorted(PRESETS))
            raise ValueError(f"Unknown coefficients preset '{coefficients}'. Valid options: {options}")
        return coefficients
    if not _is_sequence(coefficients):
        raise TypeError(
            "Coefficients must be a preset name (str), a 3-sequence (a,b,c), or a sequence of 3-sequences, "
            f"got {coefficients!r}"
        )
    if len(coefficients) == 3 and all(_is_real(x) for x in coefficients):
        return _row(coefficients)
    if len(coefficients) == 0:
        raise ValueError("Coefficient list cannot be empty")
    rows = []
    for i, item in enumerate(coefficients):
        if not _is_sequence(item):
            raise TypeError(f"Item {i} is not a sequence: {item!r}")
        rows.append(_row(item))
    return tuple(rows)


def _extend(frozen: str | Row | tuple[Row, ...], steps: int) -> tuple[Row, ...]:
    if isinstance(frozen, str):
        rows = PRESETS[frozen].rows
        if steps > len(rows) and PRESETS[frozen].tail == "none":
            raise ValueError(f"Preset '{frozen}' is a fixed sequence of {len(rows)} steps, got ns_steps={steps}")
    else:
        rows = (frozen,) if _is_real(frozen[0]) else frozen  # type: ignore[assignment]
    return rows[:steps] + rows[-1:] * (steps - len(rows))


def scalar_map(x: float, rows: Sequence[Row]) -> float:
    """What the chain does to a singular value x, in exact arithmetic."""
    for a, b, c in rows:
        x = x * (a + x * x * (b + x * x * c))
    return x


def _is_sequence(value: object) -> TypeGuard[Sequence]:
    # The usual types first: to ask for an abstract one takes longer than all the rest, in every orthogonalisation.
    return type(value) in (tuple, list) or (isinstance(value, Sequence) and not isinstance(value, (str, bytes)))


def _is_real(value: object) -> bool:
    return type(value) is float or (isinstance(value, Real) and not isinstance(value, bool))


def _row(item: Sequence) -> Row:
    if len(item) != 3 or not all(_is_real(x) and math.isfinite(x) for x in item):
        raise ValueError(f"Coefficient must be length-3 of real numbers, got: {item!r}")
    a, b, c = (float(x) for x in item)
    return a, b, c
