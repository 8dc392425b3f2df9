"""What is known of one tensor after calibration: largest magnitudes and histograms, for every case that it was seen in.

A case is a scale of the transformer, a step of the diffusion, or the only way in which an engine runs: HART's tokens and their
statistics change with the scale, and one range must serve all. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from hart_edge.runtime.engine import Array
from hart_edge.runtime.errors import InputError

BINS = 2048
SAMPLE = 1 << 20
"""Values of one tensor and call that go into a histogram at most, evenly spaced; the largest magnitude is taken of all."""

MOST_CHANNELS = 4096
"""Wider inputs get no Gram matrix: it would take more memory than the weights."""
ROWS = 64
"""Rows of a tensor that are kept of every case."""

Float64 = npt.NDArray[np.float64]


@dataclass
class Peaks:
    """First pass: largest magnitudes, and rows to try things on.

    Attributes:
        channels: [K], over everything seen.
        low, high: smallest and largest value.
        samples: up to ROWS rows [K] by case, those with the largest magnitudes among them.
        gram: [K, K] float32, Σ xᵀx / rows over all calls, so that every call counts alike; None for more than MOST_CHANNELS channels
            and for convolutions.
    """

    channels: Float64 | None = None
    low: float = float("inf")
    high: float = float("-inf")
    samples: dict[str, Array] = field(default_factory=dict)
    gram: torch.Tensor | None = None

    def add(self, values: Array, axis: int, case: str, what: str) -> None:
        """Take in one tensor, [.., K, ..] with K at `axis`; InputError, calling it `what`, when a value is not finite."""
        rows = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
        highest, lowest = rows.max(axis=0).astype(np.float64), rows.min(axis=0).astype(np.float64)
        if not (np.isfinite(highest).all() and np.isfinite(lowest).all()):
            raise InputError(
                f"{what} has values that are not finite ({case}).",
                "Calibrate the fp32 bundle of this checkpoint; if that fails too, the checkpoint is damaged: run `hart-edge verify`.",
            )
        peaks = np.maximum(np.abs(highest), np.abs(lowest))
        self.channels = peaks if self.channels is None else np.maximum(self.channels, peaks)
        self.low, self.high = min(self.low, float(lowest.min())), max(self.high, float(highest.max()))
        if case not in self.samples:
            self.samples[case] = _sample(rows)
        if axis == -1 and rows.shape[1] <= MOST_CHANNELS:
            x = torch.from_numpy(rows.astype(np.float32, copy=False))
            own = x.T @ x / len(x)
            self.gram = own if self.gram is None else self.gram + own

    @property
    def largest(self) -> torch.Tensor:
        """`channels` as a tensor."""
        return torch.as_tensor(self.channels)

    @property
    def rows(self) -> torch.Tensor:
        """All samples, float32 [N, K]."""
        return torch.from_numpy(np.concatenate(list(self.samples.values())).astype(np.float32))

    def check(self, what: str) -> None:
        """InputError for a tensor that never changes: no range can be learned from it."""
        if self.low == self.high:
            raise InputError(
                f"{what} is {self.low + 0.0:g} everywhere, in all prompts.",
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


def _sample(rows: Array) -> Array:
    """Up to ROWS of the rows: an eighth with the largest magnitudes, the rest evenly spaced."""
    if len(rows) <= ROWS:
        return rows.copy()
    magnitude = np.abs(rows).max(axis=1)
    top = np.argsort(-magnitude, kind="stable")[: ROWS // 8]
    spread = np.linspace(0, len(rows) - 1, ROWS - len(top)).astype(np.int64)
    return rows[np.concatenate([top, spread])]
