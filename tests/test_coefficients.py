"""Presets against the table of published scalar maps, and what is refused."""

import pytest

from muon_kernels.coefficients import PRESETS, resolve_coefficients, scalar_map

POINTS = (1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0)

# (preset, steps): images of POINTS to six decimals.
SCALAR_MAPS = {
    ("original", 1): (0.000344, 0.003444, 0.034440, 0.171629, 0.339695, 0.909362, 1.188859, 0.976482, 0.701000),
    ("original", 5): (0.048473, 0.470544, 0.698917, 0.758120, 0.712120, 1.079592, 0.765439, 1.119204, 0.696436),
    ("original", 10): (0.754717, 0.988072, 1.121934, 1.049132, 1.098321, 0.684072, 1.056064, 0.738409, 1.125320),
    ("quintic", 3): (0.006038, 0.060356, 0.579059, 0.991439, 0.581720, 0.768784, 0.799866, 0.394025, 1.219145),
    ("quintic", 5): (0.049257, 0.474982, 1.018025, 1.010644, 1.019050, 0.996224, 0.985869, 1.005632, 0.978346),
    ("quintic", 8): (0.931432, 0.993592, 0.987848, 0.988096, 0.987818, 0.988711, 0.989241, 0.988291, 0.989661),
    ("polar_express", 5): (0.099884, 0.862843, 1.083954, 1.046815, 0.870373, 0.923631, 0.900989, 0.869153, 0.884542),
    ("polar_express", 8): (0.586997, 1, 1, 1, 1, 1, 1, 1, 1),
    ("polar_express", 10): (0.995452, 1, 1, 1, 1, 1, 1, 1, 1),
    ("polar_express_safer", 5): (
        *(0.096874, 0.846334, 1.041916, 0.924135, 1.049245),
        *(0.999630, 0.886275, 1.048192, 0.859942),
    ),
    ("polar_express_safer", 8): (0.564877, 1, 1, 1, 1, 1, 1, 1, 1),
}

# preset: (slope at 0, lowest and highest image of [0.01, 1]), for its own number of steps.
BANDS = {
    "original": (485, 0.682, 1.134),
    "quintic": (493, 0.978, 1.032),
    "polar_express_1.05": (804, 0.846, 1.124),
    "polar_express_dion": (990, 0.859, 1.141),
    "cans": (1049, 0.884, 1.120),
    "deepseek_v4": (79263, 1.000, 1.001),
    "cubic5": (119, 0.774, 1.300),
    "turbo": (147, 0.941, 1.050),
}


@pytest.mark.parametrize(("preset", "steps"), SCALAR_MAPS)
def test_scalar_map(preset, steps):
    rows = resolve_coefficients(preset, steps)
    assert [scalar_map(x, rows) for x in POINTS] == pytest.approx(SCALAR_MAPS[preset, steps], abs=1e-6)


@pytest.mark.parametrize("preset", BANDS)
def test_band(preset):
    rows = resolve_coefficients(preset, {"deepseek_v4": 10, "turbo": 4}.get(preset, 5))
    slope, low, high = BANDS[preset]
    safety = 1.02 if preset == "polar_express_dion" else 1.0
    images = [scalar_map((0.01 + 0.99 * i / 9999) / safety, rows) for i in range(10000)]
    assert scalar_map(1e-9, rows) * 1e9 == pytest.approx(slope, rel=1e-2)
    assert (min(images), max(images)) == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_names_its_source(preset):
    assert PRESETS[preset].source and all(len(row) == 3 for row in PRESETS[preset].rows)


def test_forms_agree():
    row = (3.4445, -4.7750, 2.0315)
    assert resolve_coefficients("original", 5) == resolve_coefficients(row, 5) == resolve_coefficients([row], 5)
    assert resolve_coefficients([1, 2, 3], 2) == ((1.0, 2.0, 3.0),) * 2
    assert resolve_coefficients("quintic", 0) == ()
    assert resolve_coefficients("quintic", 7)[4:] == (PRESETS["quintic"].rows[-1],) * 3


@pytest.mark.parametrize(
    ("coefficients", "error", "message"),
    [
        ("orginal", ValueError, "Unknown coefficients preset 'orginal'. Valid options: cans, cubic5, "),
        (3.0, TypeError, "Coefficients must be a preset name"),
        (None, TypeError, "Coefficients must be a preset name"),
        (b"abc", TypeError, "Coefficients must be a preset name"),
        ((1, 2), TypeError, "Item 0 is not a sequence: 1"),
        ((True, 1, 2), TypeError, "Item 0 is not a sequence: True"),
        ([(1, 2, 3), 4], TypeError, "Item 1 is not a sequence: 4"),
        ([(1, 2)], ValueError, "length-3 of real numbers"),
        ([(1, 2, float("nan"))], ValueError, "length-3 of real numbers"),
        ((1, 2, float("inf")), ValueError, "length-3 of real numbers"),
        ([], ValueError, "cannot be empty"),
    ],
)
def test_bad_coefficients(coefficients, error, message):
    with pytest.raises(error, match=message.replace("(", r"\(")):
        resolve_coefficients(coefficients, 5)


@pytest.mark.parametrize(("steps", "error"), [(-1, ValueError), (100, ValueError), (2.0, TypeError), (True, TypeError)])
def test_bad_steps(steps, error):
    with pytest.raises(error, match="ns_steps"):
        resolve_coefficients("original", steps)


def test_fixed_sequence_does_not_stretch():
    with pytest.raises(ValueError, match="'cubic5' is a fixed sequence of 5 steps, got ns_steps=6"):
        resolve_coefficients("cubic5", 6)
