"""`softmax_rows`: `y = exp(x − max)/sum` along every row, rounded once: the attention of the decoder, between its products.

x, y [rows, W]; y may be x.
"""

from __future__ import annotations

import numpy as np

from .check import MAX_GRID_X, expect, expect_rank, expect_true, lanes, pointer, threads_for
from .kernel import C_TYPES, FLOATS, ITEM_BYTES, Buffer, Kernel, Launch
from .quantize import Array

OP = "softmax_rows"


def softmax_rows(x: Array) -> Array:
    """NumPy truth."""
    f = x.astype(np.float32)
    weights = np.exp(f - f.max(axis=-1, keepdims=True))
    y: Array = (weights / weights.sum(axis=-1, keepdims=True)).astype(x.dtype)
    return y


def kernel(dtype: str, n: int) -> Kernel:
    return Kernel("softmax_rows.cuh", f"hart::softmax_rows<{C_TYPES[dtype]}, {n}>")


KERNELS = tuple(kernel(d, n) for d in FLOATS for n in (16 // ITEM_BYTES[d], 1))


def launch(x: Buffer, y: Buffer) -> Launch:
    rows, width = expect_rank(OP, "x", x, "rows W")
    expect(OP, "y", y, (rows, width), (x.dtype,))
    expect_true(OP, rows <= MAX_GRID_X, f"x has {rows} rows; expected at most {MAX_GRID_X}.")
    n = lanes(width, x.dtype, (x, y))
    return Launch(kernel(x.dtype, n), (rows, 1, 1), (threads_for(width // n, 2), 1, 1), 0, (pointer(x), pointer(y), np.int32(width)))
