"""`to_uint8`: `trunc((clamp(x, −1, 1)·0.5 + 0.5)·255 + 0.5)` in float32, as the decoder engine rounds.

x [B, 3, H, W], or [B, H, W, 3] with channels last → uint8 [B, H, W, 3].
"""

from __future__ import annotations

import numpy as np

from .check import MAX_GRID_YZ, ceil_div, expect, expect_rank, expect_true, lanes, pointer, threads_for
from .kernel import C_TYPES, FLOATS, Buffer, Kernel, Launch
from .quantize import Array

OP = "to_uint8"
PIXELS = 4
"""Pixels per thread: 12 bytes out, written as three words."""


def to_uint8(x: Array, channels_last: bool) -> Array:
    """NumPy truth."""
    half, clamped = np.float32(0.5), np.clip(x.astype(np.float32), -1, 1)
    pixels = ((clamped * half + half) * np.float32(255) + half).astype(np.uint8)
    return pixels if channels_last else np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def kernel(dtype: str, n: int, channels_last: bool) -> Kernel:
    return Kernel("to_uint8.cuh", f"hart::to_uint8<{C_TYPES[dtype]}, {n}, {str(channels_last).lower()}>")


KERNELS = tuple(kernel(d, n, last) for d in FLOATS for n in (PIXELS, 1) for last in (False, True))


def launch(x: Buffer, out: Buffer, channels_last: bool) -> Launch:
    shape = expect_rank(OP, "x", x, "B H W 3" if channels_last else "B 3 H W")
    batch, height, width = (shape[0], shape[1], shape[2]) if channels_last else (shape[0], shape[2], shape[3])
    expect(OP, "x", x, (batch, height, width, 3) if channels_last else (batch, 3, height, width), FLOATS)
    expect(OP, "out", out, (batch, height, width, 3), ("uint8",))
    pixels = height * width
    expect_true(OP, batch <= MAX_GRID_YZ and pixels < 2**31 - 2**12, f"x is {x}, too large for one launch.")
    n = PIXELS if pixels % PIXELS == 0 and lanes(PIXELS * 4, x.dtype, (x, out)) > 1 else 1
    threads = threads_for(ceil_div(pixels, n), 1, most=256)
    grid = (ceil_div(pixels, n * threads), batch, 1)
    return Launch(kernel(x.dtype, n, channels_last), grid, (threads, 1, 1), 0, (pointer(x), pointer(out), np.int32(pixels)))
