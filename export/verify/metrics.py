"""Distances between a tensor and its reference. float64 inside; a NaN anywhere gives NaN, which passes no gate."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.metrics import structural_similarity

Array = npt.NDArray[Any]


def relative_error(value: Array, reference: Array) -> float:
    """‖a − b‖ / ‖b‖; absolute where b is all zeros."""
    a, b = value.astype(np.float64), reference.astype(np.float64)
    norm = float(np.linalg.norm(b))
    return float(np.linalg.norm(a - b)) / (norm or 1.0)


def max_error(value: Array, reference: Array) -> float:
    """Largest absolute difference."""
    return float(np.max(np.abs(value.astype(np.float64) - reference.astype(np.float64))))


def cosine(value: Array, reference: Array) -> float:
    """Smallest cosine similarity of any row (last axis)."""
    a, b = (x.astype(np.float64).reshape(-1, x.shape[-1]) for x in (value, reference))
    return float(np.min((a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))))


def kl_divergence(value: Array, reference: Array) -> float:
    """Mean KL(softmax(reference) ‖ softmax(value)) over rows, in nats."""
    p, q = _log_softmax(reference), _log_softmax(value)
    return float(np.mean((np.exp(p) * (p - q)).sum(-1)))


def top1_agreement(value: Array, reference: Array) -> float:
    """Share of rows with the same argmax."""
    return float(np.mean(value.argmax(-1) == reference.argmax(-1)))


def psnr(value: Array, reference: Array) -> float:
    """Peak signal-to-noise ratio in dB of pictures in 0…1; 200 for equal ones."""
    mse = float(np.mean((value.astype(np.float64) - reference.astype(np.float64)) ** 2))
    return 200.0 if mse == 0 else min(200.0, -10 * float(np.log10(mse)))


def ssim(value: Array, reference: Array) -> float:
    """Smallest structural similarity in a batch of pictures [B, 3, H, W] in 0…1."""
    return min(float(structural_similarity(a, b, channel_axis=0, data_range=1.0)) for a, b in zip(value, reference, strict=True))


def _log_softmax(x: Array) -> npt.NDArray[np.float64]:
    shifted = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
