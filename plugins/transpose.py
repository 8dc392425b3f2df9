"""`transpose`: the last two axes exchanged, x [B, M, N] → y [B, N, M].

float32: a latent between channels first and channels last. float8_e4m3: a weight, which FP8 products want as [out, in].
"""

from __future__ import annotations

import numpy as np

from .check import MAX_GRID_YZ, ceil_div, expect, expect_rank, expect_true, pointer
from .kernel import C_TYPES, FP8, Buffer, Kernel, Launch
from .quantize import Array

OP = "transpose"
TYPES = ("float32", FP8)
KERNELS = tuple(Kernel("transpose.cuh", f"hart::transpose<{C_TYPES[dtype]}>") for dtype in TYPES)
_TILE, _THREADS = 32, 256


def transpose(x: Array) -> Array:
    """NumPy truth."""
    return np.ascontiguousarray(x.swapaxes(1, 2))


def launch(x: Buffer, y: Buffer) -> Launch:
    """y must not overlap x."""
    batch, rows, columns = expect_rank(OP, "x", x, "B M N", TYPES)
    expect(OP, "y", y, (batch, columns, rows), (x.dtype,))
    tiles = (ceil_div(columns, _TILE), ceil_div(rows, _TILE))
    expect_true(OP, max(tiles[1], batch) <= MAX_GRID_YZ, f"x is {x}, too large for one launch.")
    arguments = (*map(pointer, (x, y)), np.int32(rows), np.int32(columns))
    return Launch(KERNELS[TYPES.index(x.dtype)], (*tiles, batch), (_THREADS, 1, 1), 0, arguments)
