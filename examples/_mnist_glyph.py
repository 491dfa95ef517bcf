"""The picture that the "shape" start adds to a weight: the character 中 on paper 1.0 in ink 0.0."""

import numpy as np

SIZE = 128
STROKE = 7.0
# Strokes as (left, top, right, bottom) in pixels: a box open in the middle, and the long vertical through it.
LEFT, RIGHT, TOP, BOTTOM = 19.3, 107.9, 29.6, 78.2
MIDDLE = (LEFT + RIGHT) / 2
STROKES = (
    (LEFT, TOP, LEFT + STROKE, BOTTOM + 6.0),
    (RIGHT - STROKE, TOP, RIGHT, BOTTOM + 6.0),
    (LEFT, TOP, RIGHT, TOP + STROKE),
    (LEFT, BOTTOM - STROKE, RIGHT, BOTTOM),
    (MIDDLE - STROKE / 2, 11.4, MIDDLE + STROKE / 2, 113.7),
)


def _coverage(low: float, high: float) -> np.ndarray:
    """How much of each pixel of a line lies between `low` and `high`; the ends are therefore anti-aliased."""
    pixel = np.arange(SIZE)
    return np.clip(np.minimum(pixel + 1, high) - np.maximum(pixel, low), 0.0, 1.0)


def glyph() -> np.ndarray:
    """The 128x128 float32 image."""
    ink = np.zeros((SIZE, SIZE))
    for left, top, right, bottom in STROKES:
        ink = np.maximum(ink, np.outer(_coverage(top, bottom), _coverage(left, right)))
    return (1.0 - ink).astype(np.float32)
