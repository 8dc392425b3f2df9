"""`add_bias`: `y = x + bias (+ residual)`, rounded once: what follows a convolution that the library cannot fuse it into.

x, residual, y [rows, C]; bias [C]. y may be x or residual.
"""

from __future__ import annotations

import numpy as np

from .check import MAX_GRID_X, ceil_div, expect, expect_rank, expect_true, lanes, pointer
from .kernel import C_TYPES, FLOATS, ITEM_BYTES, Buffer, Kernel, Launch
from .quantize import Array

OP = "add_bias"
_THREADS = 256


def add_bias(x: Array, bias: Array, residual: Array | None = None) -> Array:
    """NumPy truth."""
    y = x.astype(np.float32) + bias.astype(np.float32)
    return (y if residual is None else y + residual.astype(np.float32)).astype(x.dtype)


def kernel(dtype: str, n: int) -> Kernel:
    return Kernel("add_bias.cuh", f"hart::add_bias<{C_TYPES[dtype]}, {n}>")


KERNELS = tuple(kernel(d, n) for d in FLOATS for n in (16 // ITEM_BYTES[d], 1))


def launch(x: Buffer, bias: Buffer, y: Buffer, residual: Buffer | None = None) -> Launch:
    rows, width = expect_rank(OP, "x", x, "rows C")
    expect(OP, "bias", bias, (width,), (x.dtype,))
    expect(OP, "y", y, (rows, width), (x.dtype,))
    if residual is not None:
        expect(OP, "residual", residual, (rows, width), (x.dtype,))
    n = lanes(width, x.dtype, (x, bias, residual, y))
    across = min(width // n, _THREADS)
    down = _THREADS // across
    expect_true(OP, ceil_div(rows, down) <= MAX_GRID_X, f"x is {x}, too large for one launch.")
    arguments = (pointer(x), pointer(bias), pointer(residual), pointer(y), np.int64(rows), np.int32(width))
    return Launch(kernel(x.dtype, n), (ceil_div(rows, down), 1, 1), (across, down, 1), 0, arguments)
