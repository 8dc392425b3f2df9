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
    # Fused kernels: float32 sums in another order, products and sums contracted, other exp and sin: a few units in the
    # last place of terms up to 10, which may cancel.
    "kernel float32": {"rtol": 1e-5, "atol": 1e-5},
    # FP8 tensor cores keep fewer bits of a partial sum than float32 has. On an H200 a few of 150,000 elements of about 5 were off by
    # up to 0.0032 at 192 terms, and by more at 1536.
    "fp8 product": {"rtol": 2e-3, "atol": 2e-2},
    # Function bodies round between their operators, up to five times to 11 bits, terms up to 10 that may cancel.
    "body float16": {"rtol": 5e-3, "atol": 1e-2},
    # 2⁻⁹ for each rounding; truths of bfloat16 kernels are float32, so they round neither sum nor normalised value.
    "bfloat16": {"rtol": 1e-2, "atol": 2e-2},
    # Angles up to 364: reference and truth round the frequency to float32 on their own, so an angle may be off by
    # 364 · 2⁻²⁴ ≈ 2e-5, and its cosine with it, times elements up to 4.
    "rotated": {"rtol": 0.0, "atol": 1e-4},
    # Noise from float64 logarithms of two libraries: equal but where a float64 lies next to a rounding boundary of float32.
    "noise": {"rtol": 2.4e-7, "atol": 0.0},
    # x = 1000 + noise in float32: one unit in the last place of x is 6e-5, and y has deviation 1.
    "large mean": {"rtol": 1e-4, "atol": 3e-4},
    # f_hat and x of a kernel against a float64 truth: sums of 9·Z products of terms up to 10 in float32.
    "next scale": {"rtol": 1e-5, "atol": 5e-5},
}
"""Element by element: |actual − expected| ≤ atol + rtol · |expected|."""

RELATIVE_NORM: dict[str, float] = {
    "recording": 1e-4,  # fp32 reference against a recording made on another machine
    "exported module": 1e-5,  # same weights and formulas as the reference, additions in another order
    "smooth latent": 1e-4,  # engines on their own over all scales: a sum of smooth codes, for which see the entry above
    "recorded picture": 1e-3,  # some forty convolutions further on, and clamped
    "one layer float32": 1e-6,  # one product or convolution of the fused engine: a few thousand terms in another order
    "one layer float16": 5e-4,  # the same, rounded once to 11 bits
    "many layers float32": 1e-5,  # a decoder or an MLP: the same, some forty times one behind the other
    "many layers float16": 5e-3,  # one rounding to 11 bits per layer
    # The first diffusion step divides by √ᾱ = 5·10⁻⁵ and clips: rounding moves the few values that fall between the bounds.
    "sampled float32": 1e-3,
    "sampled float16": 2e-2,
}
"""Tensor as a whole: ‖actual − expected‖ / ‖expected‖."""

QUANTIZED_STEPS = 1
"""Kernels with INT8 or FP8 output: a value next to a tie may round the other way, to the neighbouring code."""

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
