"""`upsample`: nearest-neighbour enlargement by two, channels last: `y[b, i, j] = x[b, i // 2, j // 2]`.

x [B, H, W, C] → y [B, 2H, 2W, C]; the numbers are moved as they are.
"""

from __future__ import annotations

import numpy as np

from .check import MAX_GRID_X, ceil_div, expect, expect_rank, expect_true, lanes, pointer
from .kernel import C_TYPES, FLOATS, ITEM_BYTES, Buffer, Kernel, Launch
from .quantize import Array

OP = "upsample"
_THREADS = 256


def upsample(x: Array) -> Array:
    """NumPy truth."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def kernel(dtype: str, n: int) -> Kernel:
    return Kernel("upsample.cuh", f"hart::upsample<{C_TYPES[dtype]}, {n}>")


KERNELS = tuple(kernel(d, n) for d in FLOATS for n in (16 // ITEM_BYTES[d], 1))


def launch(x: Buffer, y: Buffer) -> Launch:
    batch, height, width, channels = expect_rank(OP, "x", x, "B H W C")
    expect(OP, "y", y, (batch, 2 * height, 2 * width, channels), (x.dtype,))
    n, cells = lanes(channels, x.dtype, (x, y)), batch * height * width
    across = min(channels // n, _THREADS)
    down = _THREADS // across
    expect_true(OP, ceil_div(cells, down) <= MAX_GRID_X, f"x is {x}, too large for one launch.")
    arguments = (pointer(x), pointer(y), np.int64(cells), np.int32(width), np.int32(channels))
    return Launch(kernel(x.dtype, n), (ceil_div(cells, down), 1, 1), (across, down, 1), 0, arguments)
