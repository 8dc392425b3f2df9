"""Fréchet distance between two sets of pictures in a fixed, hand-made feature space.

Features follow the GIST descriptor (Oliva & Torralba, IJCV 2001) in spirit, without learned parts: over a 4 × 4 grid,
the mean Lab colour and the mean strength of horizontal and vertical detail at two resolutions. The distance is Dowson &
Landau's (1982), `‖μ1 − μ2‖² + tr(C1 + C2 − 2·(C1·C2)^½)`, as in FID. Figures compare with each other, not with FID.

Means and covariances are estimated, so the distance of two finite sets of the same pictures is above 0: with 112 features
and some hundred pictures by a good part of what a fair model scores. Only figures of equal N and M compare, and the
distance between two sets of rendered pictures of that size (`RealPictures.floor`) is the least that can be reached.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from skimage.color import rgb2lab

GRID = 4
Pixels = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float64]


def features(images: Iterable[Pixels]) -> Features:
    """Pictures [H, W, 3] uint8, sides divisible by 16 → [N, 16·7]."""
    return np.stack([_features(image) for image in images])


def frechet_distance(first: Features, second: Features) -> float:
    """Distance between two feature sets [N, F] and [M, F]; N and M should be well above F.

    With the deviations A and B, `C1 = AᵀA` and `C2 = BᵀB`, so `tr (C1·C2)^½` is the sum of the singular values of `A·Bᵀ`: no root
    of a matrix that may be singular has to be taken.
    """
    mean = first.mean(axis=0) - second.mean(axis=0)
    a, b = ((x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (first, second))
    return float(mean @ mean + (a * a).sum() + (b * b).sum() - 2 * np.linalg.norm(a @ b.T, ord="nuc"))


def _features(image: Pixels) -> Features:
    lab = rgb2lab(image) / 100.0
    light = lab[..., 0]
    half = _pool(light, 2)
    maps = [_pool(lab[..., c], lab.shape[0] // GRID) for c in range(3)]
    for level in (light, half):
        for axis in (0, 1):
            detail = np.abs(np.diff(level, axis=axis, append=level.take([-1], axis=axis)))
            maps.append(4 * _pool(detail, level.shape[0] // GRID))
    return np.stack(maps, axis=-1).reshape(-1)


def _pool(x: Features, block: int) -> Features:
    """Mean over block × block cells."""
    height, width = x.shape
    pooled: Features = x.reshape(height // block, block, width // block, block).mean(axis=(1, 3))
    return pooled
