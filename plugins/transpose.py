"""`transpose`: the last two axes exchanged, x [B, M, N] float32 → y [B, N, M]: between channels first and channels last."""

from __future__ import annotations

import numpy as np

from .check import MAX_GRID_YZ, ceil_div, expect, expect_rank, expect_true, pointer
from .kernel import Buffer, Kernel, Launch
from .quantize import Array

OP = "transpose"
KERNEL = Kernel("transpose.cuh", "hart::transpose")
KERNELS = (KERNEL,)
_TILE, _THREADS = 32, 256


def transpose(x: Array) -> Array:
    """NumPy truth."""
    return np.ascontiguousarray(x.swapaxes(1, 2))


def launch(x: Buffer, y: Buffer) -> Launch:
    """y must not overlap x."""
    batch, rows, columns = expect_rank(OP, "x", x, "B M N", ("float32",))
    expect(OP, "y", y, (batch, columns, rows), ("float32",))
    tiles = (ceil_div(columns, _TILE), ceil_div(rows, _TILE))
    expect_true(OP, max(tiles[1], batch) <= MAX_GRID_YZ, f"x is {x}, too large for one launch.")
    arguments = (*map(pointer, (x, y)), np.int32(rows), np.int32(columns))
    return Launch(KERNEL, (*tiles, batch), (_THREADS, 1, 1), 0, arguments)
