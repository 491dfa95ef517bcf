import pytest

from muon_kernels.scaling import RULES, resolve_rule

TABLE = [
    ("original", (8, 36), 1.0),
    ("original", (8, 4), 1.414214),
    ("match_rms_adamw", (8, 36), 1.2),
    ("match_rms_adamw", (9, 8, 4), 0.565685),
    ("spectral_unclamped", (8, 36), 0.471405),
    ("spectral_unclamped", (8, 4), 1.414214),
    ("max_dim", (128, 784), 28.0),
    ("constant", (128, 784), 1.0),
]


@pytest.mark.parametrize(("name", "shape", "scale"), TABLE)
def test_rule(name, shape, scale):
    assert resolve_rule(name)(shape) == pytest.approx(scale, abs=1e-6)


def test_none_means_original_and_callables_pass():
    assert resolve_rule(None) is RULES["original"]
    assert resolve_rule(max)((3, 5)) == 5


@pytest.mark.parametrize("name", ["spectral", 3, ""])
def test_unknown_rule(name):
    with pytest.raises(ValueError, match="adjust_lr_fn must be None, a callable or one of constant, match_rms_adamw"):
        resolve_rule(name)
