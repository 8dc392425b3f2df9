"""What is known of one tensor after calibration: largest magnitudes and histograms, for every case that it was seen in.

A case is a scale of the transformer, a step of the diffusion, or the only way in which an engine runs: HART's tokens and their
statistics change with the scale, and one range must serve all. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hart_edge.runtime.engine import Array
from hart_edge.runtime.errors import InputError

BINS = 2048
SAMPLE = 1 << 20
"""Values of one tensor and call that go into a histogram at most, evenly spaced; the largest magnitude is taken of all."""

Float64 = npt.NDArray[np.float64]


@dataclass
class Peaks:
    """First pass: largest magnitudes.

    Attributes:
        channels: [K], over everything seen.
        cases: largest magnitude by case.
        low, high: smallest and largest value.
    """

    channels: Float64 | None = None
    cases: dict[str, float] = field(default_factory=dict)
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, values: Array, axis: int, case: str, what: str) -> None:
        """Take in one tensor, [.., K, ..] with K at `axis`; InputError, calling it `what`, when a value is not finite."""
        moved = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
        highest, lowest = moved.max(axis=0).astype(np.float64), moved.min(axis=0).astype(np.float64)
        if not (np.isfinite(highest).all() and np.isfinite(lowest).all()):
            raise InputError(
                f"{what} has values that are not finite ({case}).",
                "Calibrate the fp32 bundle of this checkpoint; if that fails too, the checkpoint is damaged: run `hart-edge verify`.",
            )
        peaks = np.maximum(np.abs(highest), np.abs(lowest))
        self.channels = peaks if self.channels is None else np.maximum(self.channels, peaks)
        self.cases[case] = max(self.cases.get(case, 0.0), float(peaks.max()))
        self.low, self.high = min(self.low, float(lowest.min())), max(self.high, float(highest.max()))

    def check(self, what: str) -> None:
        """InputError for a tensor that never changes: no range can be learned from it."""
        if self.low == self.high:
            raise InputError(
                f"{what} is {self.low:g} everywhere, in all prompts.",
                "Calibrate with other prompts; if it stays so, the checkpoint is damaged: run `hart-edge verify`.",
            )


@dataclass
class Histogram:
    """Second pass: how often which magnitude occurs, BINS equal bins over 0…top, by case.

    Attributes:
        top: upper end of the last bin.
        cases: counts [BINS] by case.
    """

    top: float
    cases: dict[str, Float64] = field(default_factory=dict)

    def add(self, values: Array, case: str) -> None:
        """Take in one tensor of any shape."""
        flat = values.reshape(-1)
        flat = flat[:: max(1, flat.size // SAMPLE)]
        index = (np.abs(flat.astype(np.float32)) * np.float32(BINS / self.top)).astype(np.int64)
        counts = np.bincount(np.minimum(index, BINS - 1), minlength=BINS).astype(np.float64)
        self.cases[case] = self.cases.get(case, 0.0) + counts

    @property
    def mean(self) -> Float64:
        """Share of the values in every bin, all cases alike: the few tokens of a coarse scale decide the layout of the picture."""
        total: Float64 = np.mean([counts / counts.sum() for counts in self.cases.values()], axis=0)
        return total

    @property
    def centres(self) -> Float64:
        """Magnitude in the middle of every bin."""
        return (np.arange(BINS) + 0.5) * (self.top / BINS)
