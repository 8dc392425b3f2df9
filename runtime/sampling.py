"""From logits to codes, for one image: guidance, truncation, token choice, smooth mixture. Pure NumPy.

Follows HART's published sampler; noise comes from outside.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from .noise import Float32

Int64 = npt.NDArray[np.int64]


def scale_ratio(scale: int, scales: int) -> float:
    """i/(S−1); the last scale keeps the value of the one before it."""
    return min(scale, scales - 2) / (scales - 1)


def guide(conditional: Float32, unconditional: Float32 | None, t: float) -> Float32:
    """`(1+t)·cond − t·uncond`, a new array [L, V]; with t = 0 the unconditional logits are not needed."""
    if unconditional is None or t == 0:
        return conditional.copy()
    return np.float32(1 + t) * conditional - np.float32(t) * unconditional


def keep_top_k(logits: Float32, k: int) -> None:
    """Set everything below the k-th largest value of each row to −∞, in place; ties with it are kept."""
    size = logits.shape[-1]
    if k < size:
        threshold = np.partition(logits, size - k, axis=-1)[:, size - k, None]
        logits[logits < threshold] = -np.inf


def keep_top_p(logits: Float32, p: float) -> None:
    """Set everything outside the smallest set of probability above p to −∞, in place; the likeliest stays."""
    if not 0 < p < 1:
        return
    order = np.argsort(logits, axis=-1, kind="stable")
    probability = softmax(np.take_along_axis(logits, order, axis=-1))
    drop = np.cumsum(probability, axis=-1) <= 1 - p
    drop[:, -1] = False
    mask = np.zeros_like(drop)
    np.put_along_axis(mask, order, drop, axis=-1)
    logits[mask] = -np.inf


def choose(masked: Float32, gumbel: Float32) -> Int64:
    """Gumbel-max: one draw per row from softmax(masked), [L]."""
    index: Int64 = np.argmax(masked + gumbel, axis=-1)
    return index


def smooth_codes(masked: Float32, gumbel: Float32, ratio: float, codebook: Float32) -> Float32:
    """`softmax((masked·(1+ratio) + gumbel)/τ) @ codebook`, τ = max(0.27·(1 − 0.95·ratio), 0.005): [L, Z]."""
    temperature = max(0.27 * (1 - 0.95 * ratio), 0.005)
    weights = softmax((masked * np.float32(1 + ratio) + gumbel) / np.float32(temperature))
    with _blas().limit(limits=1, user_api="blas"):  # BLAS threads spin on after the product, beside the next engine's
        mixed: Float32 = weights @ codebook
    return mixed


@functools.cache
def _blas() -> ThreadpoolController:
    """Handle of NumPy's BLAS; finding it scans the loaded libraries, so once is enough."""
    return ThreadpoolController()


def softmax(x: Float32) -> Float32:
    """Row-wise, stable; rows may hold −∞.

    Exponents stop at −80: smaller weights are far below float32's resolution, and would be denormal numbers, on which
    the processor is slow.
    """
    e = np.exp(np.maximum(x - x.max(axis=-1, keepdims=True), np.float32(-80)))
    result: Float32 = e / e.sum(axis=-1, keepdims=True)
    return result
