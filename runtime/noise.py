"""Counter-based noise: the same numbers for the same seed on every backend and at every batch size.

Philox 4x32-10 (Salmon et al., SC 2011), key = the 64-bit seed, counter = (block low, block high, scale or step,
purpose). Element e of a tensor is lane e mod 4 of block e div 4. Logarithms and cosines are taken in float64 and
rounded to float32, so that a different math library does not show. Knows nothing of what the noise is used for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .engine import Array
from .options import check_seed

NOISE_VERSION = "philox4x32-10/1"
_CHUNK = 1 << 13  # blocks at a time: the working set stays in the cache
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

Float32 = npt.NDArray[np.float32]
Shape = tuple[int, int]


class Purpose(IntEnum):
    """What a stream of noise is for; part of the counter, so streams never overlap."""

    TOKEN = 0
    SMOOTH = 1
    DIFFUSION_INIT = 2
    DIFFUSION_STEP = 3


class Noise(Protocol):
    """Noise of a batch, one image at a time. Shapes are (rows, columns), results float32."""

    def token(self, image: int, scale: int, shape: Shape) -> Float32:
        """Gumbel noise [p², V] of the token choice."""

    def smooth(self, image: int, scale: int, shape: Shape) -> Float32:
        """Gumbel noise [p², V] of smooth sampling."""

    def diffusion_init(self, image: int, shape: Shape) -> Float32:
        """Normal noise [G², Z] that the residual diffusion starts from."""

    def diffusion_step(self, image: int, step: int, shape: Shape) -> Float32:
        """Normal noise [G², Z] of one diffusion step, counted in the order they run."""


class PhiloxNoise:
    """Noise from one seed per image."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = [check_seed(seed) for seed in seeds]

    def token(self, image: int, scale: int, shape: Shape) -> Float32:
        return gumbel(self.seeds[image], Purpose.TOKEN, scale, shape)

    def smooth(self, image: int, scale: int, shape: Shape) -> Float32:
        return gumbel(self.seeds[image], Purpose.SMOOTH, scale, shape)

    def diffusion_init(self, image: int, shape: Shape) -> Float32:
        return normal(self.seeds[image], Purpose.DIFFUSION_INIT, 0, shape)

    def diffusion_step(self, image: int, step: int, shape: Shape) -> Float32:
        return normal(self.seeds[image], Purpose.DIFFUSION_STEP, step, shape)


class RecordedNoise:
    """Noise from arrays: `token_{i}`, `smooth_{i}` [B, p², V]; `diffusion_init`, `diffusion_step_{k}` [B·G², Z]."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = arrays

    def token(self, image: int, scale: int, shape: Shape) -> Float32:
        return self._image(f"token_{scale}", image, shape)

    def smooth(self, image: int, scale: int, shape: Shape) -> Float32:
        return self._image(f"smooth_{scale}", image, shape)

    def diffusion_init(self, image: int, shape: Shape) -> Float32:
        return self._image("diffusion_init", image, shape)

    def diffusion_step(self, image: int, step: int, shape: Shape) -> Float32:
        return self._image(f"diffusion_step_{step}", image, shape)

    def _image(self, name: str, image: int, shape: Shape) -> Float32:
        return np.asarray(self.arrays[name].reshape(-1, *shape)[image], dtype=np.float32)


def gumbel(seed: int, purpose: Purpose, index: int, shape: Shape) -> Float32:
    """`−ln(−ln u)`, u uniform on (0, 1): float32 of the given shape."""
    out = np.empty(shape[0] * shape[1], dtype=np.float32)
    for start, lanes in _chunks(seed, purpose, index, out.size):
        values = -np.log(-np.log(_uniform(lanes))).reshape(-1)
        out[start : start + values.size] = values[: out.size - start]
    return out.reshape(shape)


def normal(seed: int, purpose: Purpose, index: int, shape: Shape) -> Float32:
    """Standard normal by Box-Muller over neighbouring lanes: float32 of the given shape."""
    out = np.empty(shape[0] * shape[1], dtype=np.float32)
    for start, lanes in _chunks(seed, purpose, index, out.size):
        u = _uniform(lanes)
        radius, angle = np.sqrt(-2 * np.log(u[:, 0::2])), 2 * np.pi * u[:, 1::2]
        values = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1)
        out[start : start + values.size] = values[: out.size - start]
    return out.reshape(shape)


def philox(seed: int, first_block: int, blocks: int, index: int, purpose: int) -> npt.NDArray[np.uint32]:
    """Random bits of consecutive blocks, [blocks, 4] uint32."""
    block = np.arange(first_block, first_block + blocks, dtype=np.uint64)
    c0, c1 = block & _LOW, block >> _HALF
    c2, c3 = np.full_like(block, index), np.full_like(block, purpose)
    p0, p1 = np.empty_like(block), np.empty_like(block)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):  # in place: allocating takes longer than the arithmetic
        np.multiply(c0, _MULTIPLIERS[0], out=p0)
        np.multiply(c2, _MULTIPLIERS[1], out=p1)
        np.bitwise_xor(np.right_shift(p1, _HALF, out=c0), c1, out=c0)
        np.bitwise_xor(np.right_shift(p0, _HALF, out=c2), c3, out=c2)
        np.bitwise_xor(c0, np.uint64(k0), out=c0)
        np.bitwise_xor(c2, np.uint64(k1), out=c2)
        np.bitwise_and(p1, _LOW, out=c1)
        np.bitwise_and(p0, _LOW, out=c3)
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def _chunks(seed: int, purpose: Purpose, index: int, size: int) -> Iterator[tuple[int, npt.NDArray[np.uint32]]]:
    """(first element, lanes) of every chunk of a tensor."""
    blocks = -(-size // 4)
    for first in range(0, blocks, _CHUNK):
        yield 4 * first, philox(seed, first, min(_CHUNK, blocks - first), index, purpose)


def _uniform(bits: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    """(bits + ½)·2⁻³², strictly inside (0, 1)."""
    return (bits.astype(np.float64) + 0.5) * 2.0**-32
