"""`join_phases`: the four phases of an enlarged image, put in their places: `y[b, 2r + p, 2c + q] = z[b, r + p, c + q, 2p + q]`.

z [B, H + 1, W + 1, 4·C] → y [B, 2H, 2W, C]; the numbers are moved as they are. z is what a convolution of 2 × 2 makes of an
image [B, H, W, …] padded by one on every side: the phases of "enlarge by two, then convolve with 3 × 3" see only 2 × 2 cells
of the small image each, so 4 products stand where 9 stood (`phase_kernels` of `runtime/fused/conv.py`).
"""

from __future__ import annotations

import numpy as np

from .check import MAX_GRID_YZ, ceil_div, expect, expect_rank, expect_true, lanes, pointer
from .kernel import C_TYPES, FLOATS, ITEM_BYTES, Buffer, Kernel, Launch
from .quantize import Array

OP = "join_phases"
_THREADS = 256


def join_phases(z: Array) -> Array:
    """NumPy truth."""
    batch, height, width, channels = z.shape
    phases = z.reshape(batch, height, width, 2, 2, channels // 4)
    y = np.empty((batch, 2 * height - 2, 2 * width - 2, channels // 4), z.dtype)
    for p in range(2):
        for q in range(2):
            y[:, p::2, q::2] = phases[:, p : height - 1 + p, q : width - 1 + q, p, q]
    return y


def kernel(dtype: str, n: int) -> Kernel:
    return Kernel("join_phases.cuh", f"hart::join_phases<{C_TYPES[dtype]}, {n}>")


KERNELS = tuple(kernel(d, n) for d in FLOATS for n in (16 // ITEM_BYTES[d], 1))


def launch(z: Buffer, y: Buffer) -> Launch:
    batch, rows, columns, channels = expect_rank(OP, "y", y, "B 2H 2W C")
    expect_true(OP, rows % 2 == 0 and columns % 2 == 0, f"y is {y}; expected an even number of rows and columns.")
    expect(OP, "z", z, (batch, rows // 2 + 1, columns // 2 + 1, 4 * channels), (y.dtype,))
    expect_true(OP, batch * rows <= MAX_GRID_YZ, f"y is {y}; expected at most {MAX_GRID_YZ} rows of all images.")
    n = lanes(channels, y.dtype, (z, y))
    across = min(channels // n, _THREADS)
    down = _THREADS // across
    arguments = (pointer(z), pointer(y), np.int32(rows // 2), np.int32(columns // 2), np.int32(channels))
    return Launch(kernel(y.dtype, n), (ceil_div(columns, down), batch * rows, 1), (across, down, 1), 0, arguments)
