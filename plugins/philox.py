"""Philox 4x32-10 and the two distributions in NumPy: the truth of `philox.cuh`, written out lane by lane.

The same numbers as `runtime/noise.py`, whose docstring has the layout of key and counter.
"""

from __future__ import annotations

import numpy as np

from .quantize import Array

TOKEN, SMOOTH, DIFFUSION_INIT, DIFFUSION_STEP = range(4)


def gumbel(seed: int, purpose: int, index: int, size: int) -> Array:
    """`−ln(−ln u)`: the first `size` elements, float32."""
    with np.errstate(divide="raise"):
        return (-np.log(-np.log(_uniform(seed, purpose, index, size)))).reshape(-1)[:size].astype(np.float32)


def normal(seed: int, purpose: int, index: int, size: int) -> Array:
    """Box-Muller over neighbouring lanes: the first `size` elements, float32."""
    u = _uniform(seed, purpose, index, size)
    radius, angle = np.sqrt(-2 * np.log(u[:, 0::2])), 2 * np.pi * u[:, 1::2]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1)[:size].astype(np.float32)


def _uniform(seed: int, purpose: int, index: int, size: int) -> Array:
    """(bits + ½)·2⁻³² of as many blocks as `size` elements take, [blocks, 4] float64."""
    block, mask = np.arange(-(-size // 4), dtype=np.uint64), np.uint64(0xFFFFFFFF)
    c = [block & mask, block >> np.uint64(32), np.full_like(block, index), np.full_like(block, purpose)]
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k0), p1 & mask, (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k1), p0 & mask]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return (np.stack(c, axis=-1).astype(np.float64) + 0.5) * 2.0**-32
