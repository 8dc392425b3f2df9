"""The range of a tensor: the magnitude that the largest stored number stands for. Values beyond it are clipped.

    minmax      the largest magnitude seen
    percentile  the magnitude that a share of the values stays within
    entropy     the range whose quantised histogram diverges least from the original one (Migacz, "8-bit inference with
                TensorRT", GTC 2017); thresholds are tried every 16 bins
    mse         the range of the least expected squared error, rounding and clipping together

All of them see the histogram that weighs every case alike; see statistics.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from hart_edge.runtime.errors import InputError

from .schemes import INT8, Format
from .statistics import BINS, Float64, Histogram

PERCENTILE = 99.99
CANDIDATES = 80
LEVELS = 128
"""Of one sign of int8, zero included."""


def _minmax(histogram: Histogram, form: Format) -> float:
    return histogram.top


def _percentile(histogram: Histogram, form: Format) -> float:
    inside = np.cumsum(histogram.mean)
    return float((np.searchsorted(inside, PERCENTILE / 100) + 1) * histogram.top / BINS)


def _mse(histogram: Histogram, form: Format) -> float:
    """A grid of ranges from 1/CANDIDATES of the largest magnitude up to it."""
    centres, weights = torch.from_numpy(histogram.centres).float(), torch.from_numpy(histogram.mean)
    ranges = torch.arange(1, CANDIDATES + 1) * (histogram.top / CANDIDATES)
    scales = (ranges / form.largest).float()[:, None]
    rounded = form.quantize(centres[None], scales).float() * scales
    errors = ((rounded - centres).double() ** 2 * weights).sum(dim=1)
    return float(ranges[int(errors.argmin())])


def _entropy(histogram: Histogram, form: Format) -> float:
    if form is not INT8:
        raise InputError(f"the range `entropy` is for INT8; {form.name} has no levels of equal width.", "Choose mse, percentile or minmax.")
    counts = histogram.mean
    stops = np.arange(LEVELS, BINS + 1, 16)
    divergences = [_divergence(counts, int(stop)) for stop in stops]
    return float(stops[int(np.argmin(divergences))] * histogram.top / BINS)


def _divergence(counts: Float64, stop: int) -> float:
    """KL(reference ‖ quantised) with the range at bin `stop`: what lies beyond counts as the last bin."""
    kept = counts[:stop]
    reference = kept.copy()
    reference[-1] += counts[stop:].sum()
    level = np.arange(stop) * LEVELS // stop
    present = kept > 0
    mass = np.bincount(level, weights=kept, minlength=LEVELS)
    filled = np.bincount(level, weights=present, minlength=LEVELS)
    quantised = np.where(present, mass[level] / np.maximum(filled[level], 1), 0.0)
    both = (reference > 0) & (quantised > 0)
    if quantised.sum() == 0 or (reference[~both] > 0).any():
        return float("inf")
    p, q = reference[both] / reference.sum(), quantised[both] / quantised.sum()
    return float(np.sum(p * np.log(p / q)))


RANGES: dict[str, Callable[[Histogram, Format], float]] = {"minmax": _minmax, "percentile": _percentile, "entropy": _entropy, "mse": _mse}


def check_range(name: str) -> str:
    """Returns the name; InputError lists the ones there are."""
    if name not in RANGES:
        raise InputError(f"range {name!r} is unknown; expected one of {', '.join(RANGES)}.")
    return name
