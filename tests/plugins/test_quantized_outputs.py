"""INT8 and E4M3 rounding of the truths against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from devices import values

from hart_edge.plugins.quantize import e4m3_codes, e4m3_values, inverse_of, quantize
from hart_edge.runtime.errors import InputError

CODES = np.arange(256, dtype=np.uint8)


def test_e4m3_values_are_those_of_torch() -> None:
    expected = torch.from_numpy(CODES).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(e4m3_values(CODES), expected)


def test_every_e4m3_value_keeps_its_code() -> None:
    finite = CODES[np.isfinite(e4m3_values(CODES))]
    np.testing.assert_array_equal(e4m3_codes(e4m3_values(finite)), finite)


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 100.0])
def test_e4m3_rounding_is_that_of_torch(scale: float) -> None:
    x = np.clip(values((19, 989), scale=scale), -448, 448)
    expected = torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(e4m3_codes(x), expected)


def test_e4m3_ties_go_to_the_even_code_and_large_values_saturate() -> None:
    ties = np.array([1.0625, 1.1875, 2.0**-10, 3 * 2.0**-10, 500, -1e30], np.float32)
    np.testing.assert_array_equal(e4m3_values(e4m3_codes(ties)), [1.0, 1.25, 0.0, 2.0**-8, 448, -448])


def test_int8_rounds_to_even_and_saturates() -> None:
    y = np.array([0.25, 0.75, -0.25, 1.25, 200, -200], np.float32)
    np.testing.assert_array_equal(quantize(y, 0.5, "int8"), np.array([0, 2, 0, 2, 127, -128], np.int8))


def test_int8_is_that_of_torch() -> None:
    x, scale = values((19, 989)), 1 / 64
    expected = torch.from_numpy(x / scale).round().clamp(-128, 127).to(torch.int8).numpy()
    np.testing.assert_array_equal(quantize(x, scale, "int8"), expected)


@pytest.mark.parametrize(("scale", "quantized"), [(None, True), (0.0, True), (-1.0, True), (float("inf"), True), (1.0, False)])
def test_scale_and_output_must_agree(scale: float | None, quantized: bool) -> None:
    with pytest.raises(InputError, match=f"scale is {scale}"):
        inverse_of("swiglu", scale, quantized)
