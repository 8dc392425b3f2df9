"""Statistics of tensors, and the ranges found in them."""

from __future__ import annotations

import numpy as np
import pytest

from hart_edge.calibration.ranges import RANGES, check_range
from hart_edge.calibration.schemes import FP8, INT8
from hart_edge.calibration.statistics import BINS, Histogram, Peaks
from hart_edge.runtime.errors import InputError


@pytest.fixture
def outlier() -> Histogram:
    """Normal values, and one of 40 deviations."""
    histogram = Histogram(40.0)
    histogram.add(np.append(np.random.default_rng(0).standard_normal(200_000), 40.0).astype(np.float32), "scale 0")
    return histogram


def test_ranges_of_a_tensor_with_an_outlier(outlier: Histogram) -> None:
    found = {name: search(outlier, INT8) for name, search in RANGES.items()}
    assert found["minmax"] == 40.0
    assert 3 < found["percentile"] < 5
    assert 3 < found["entropy"] < 12
    assert 3 < found["mse"] < 30
    assert RANGES["mse"](outlier, FP8) > 10  # an exponent of its own reaches far at no cost


def test_the_least_error_really_is_the_least() -> None:
    values = np.random.default_rng(1).standard_normal(50_000).astype(np.float32)
    histogram = Histogram(float(np.abs(values).max()))
    histogram.add(values, "all")

    def error(largest: float) -> float:
        scale = largest / 127
        return float(np.mean((np.clip(np.round(values / scale), -127, 127) * scale - values) ** 2))

    assert error(RANGES["mse"](histogram, INT8)) <= 1.02 * min(error(r) for r in np.linspace(2.0, histogram.top, 60))


def test_every_case_counts_alike() -> None:
    histogram = Histogram(10.0)
    histogram.add(np.full(100_000, 1.0, np.float32), "scale 9")
    histogram.add(np.full(4, 9.0, np.float32), "scale 0")
    assert histogram.mean[int(9.0 / 10 * BINS)] == pytest.approx(0.5)


def test_entropy_is_for_int8(outlier: Histogram) -> None:
    with pytest.raises(InputError, match="`entropy` is for INT8"):
        RANGES["entropy"](outlier, FP8)
    with pytest.raises(InputError, match="range 'max' is unknown; expected one of minmax, percentile, entropy, mse"):
        check_range("max")


def test_peaks_by_channel_of_matrices_and_pictures() -> None:
    peaks = Peaks()
    peaks.add(np.array([[[1.0, -5.0], [2.0, 3.0]]], np.float16), -1, "scale 0", "x")
    peaks.add(np.array([[[-4.0, 0.0]]], np.float16), -1, "scale 1", "x")
    assert peaks.largest.tolist() == [4.0, 5.0] and (peaks.low, peaks.high) == (-5.0, 3.0)
    assert peaks.rows.shape == (3, 2)
    assert peaks.gram is not None and peaks.gram.tolist() == [[2.5 + 16, 0.5], [0.5, 17.0]]
    picture = Peaks()
    picture.add(np.arange(24, dtype=np.float32).reshape(1, 3, 2, 4), 1, "all", "x")
    assert picture.largest.tolist() == [7.0, 15.0, 23.0] and picture.gram is None


def test_samples_hold_the_rows_that_matter_most() -> None:
    values = np.ones((1000, 3), np.float32)
    values[617, 1] = 500
    peaks = Peaks()
    peaks.add(values, -1, "scale 0", "x")
    assert len(peaks.rows) == 64 and 500 in peaks.rows


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(InputError, match=r"tensor x has values that are not finite \(scale 2\)"):
        Peaks().add(np.array([[1.0, bad]], np.float32), -1, "scale 2", "tensor x")


def test_what_never_changes_is_refused() -> None:
    peaks = Peaks()
    peaks.add(np.full((4, 4), 0.25, np.float32), -1, "all", "x")
    with pytest.raises(InputError, match=r"x is 0\.25 everywhere, in all prompts"):
        peaks.check("x")
