"""Rotary tables for the transformer engine: `x·cos + swap(x)·sin`, swap exchanging the halves of a head.

The signs of both of HART's formulas (1-D for text, 2-D for image tokens) are folded into `sin`, so one graph serves
both. The image table uses different angles for the two halves: it is not a rotation.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .engine import Array
from .noise import Float32

Tables = tuple[Float32, Float32]


def text_tables(position_ids: npt.NDArray[np.int64], head_dim: int) -> Tables:
    """1-D rotary, base 10000: position_ids [R, T] → cos, sin [R, 1, T, D]."""
    frequency = _frequency(head_dim // 2, 2, head_dim)
    angle = position_ids[..., None].astype(np.float32) * frequency
    return _pack(angle, angle)


def image_tables(patch_num: int, grid: int, offset: npt.NDArray[np.int64], head_dim: int) -> Tables:
    """2-D rotary of one scale; token (r, c) stands at (r, c)/p·G + offset: offset [R] → cos, sin [R, 1, p², D]."""
    frequency = _frequency(head_dim // 4, 4, head_dim)
    place = np.arange(patch_num, dtype=np.float32) / np.float32(patch_num) * np.float32(grid)
    shift = offset[:, None].astype(np.float32)
    row, col = np.repeat(place, patch_num) + shift, np.tile(place, patch_num) + shift
    first, second = (np.tile(axis[..., None] * frequency, 2) for axis in (row, col))
    return _pack(first, second)


def _frequency(count: int, exponent: int, head_dim: int) -> Float32:
    return (1 / 10000.0 ** (exponent * np.arange(count) / head_dim)).astype(np.float32)


def _pack(first: Array, second: Array) -> Tables:
    """Angles of the two halves [R, L, D/2] → cos = [cos a, cos b], sin = [−sin a, sin b]."""
    cos = np.concatenate([np.cos(first), np.cos(second)], axis=-1)
    sin = np.concatenate([-np.sin(first), np.sin(second)], axis=-1)
    return cos[:, None], sin[:, None]
