"""The one table of tolerances: per dtype, plus named entries where a quantity needs its own, with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np

TOLERANCES: dict[str, dict[str, float]] = {
    "float64": {"rtol": 1e-10, "atol": 1e-12},
    "float32": {"rtol": 1e-5, "atol": 1e-6},
    "float16": {"rtol": 2e-3, "atol": 2e-3},
    # The angle of a rotary table is position · frequency, up to 111 in these tests; both sides round the frequency to
    # float32 on their own, so the angle may be off by 111 · 2⁻²⁴ ≈ 7e-6 and its cosine with it (2.4e-6 measured).
    "rotary table": {"rtol": 0.0, "atol": 1e-5},
    # softmax(… / τ), τ down to 0.033, multiplies the rounding of a logit of about 20 by 30 before it is exponentiated.
    "smooth codes": {"rtol": 1e-4, "atol": 1e-5},
}
"""Element by element: |actual − expected| ≤ atol + rtol · |expected|."""

RELATIVE_NORM: dict[str, float] = {
    "recording": 1e-4,  # fp32 reference against a recording made on another machine
    "exported module": 1e-5,  # same weights and formulas as the reference, additions in another order
    "smooth latent": 1e-4,  # engines on their own over all scales: a sum of smooth codes, for which see the entry above
    "recorded picture": 1e-3,  # some forty convolutions further on, and clamped
}
"""Tensor as a whole: ‖actual − expected‖ / ‖expected‖."""

SIGMAS = 5.0
"""Statistical tests: allowed distance in standard deviations. Seeds are fixed, so a test that passes keeps passing."""


def assert_close(actual: Any, expected: Any, entry: str) -> None:
    """Equal within the table's entry, shape and finiteness included."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual.astype(np.float64), expected.astype(np.float64), **TOLERANCES[entry])


def relative_error(actual: Any, expected: Any) -> float:
    """‖actual − expected‖ / ‖expected‖, for RELATIVE_NORM."""
    a, b = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
