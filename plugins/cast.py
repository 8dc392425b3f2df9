"""`cast`: `y = x` in another float type, rounded to nearest even. x and y have one shape, of any rank."""

from __future__ import annotations

import math

import numpy as np

from .check import MAX_GRID_X, ceil_div, expect, expect_true, lanes, pointer, threads_for
from .kernel import C_TYPES, FLOATS, Buffer, Kernel, Launch
from .quantize import Array

OP = "cast"
ELEMENTS = 4
"""Per thread: 16 bytes on the float32 side, which is what `lanes` counts here."""
PAIRS = tuple((a, b) for a in FLOATS for b in FLOATS if (a == "float32") != (b == "float32"))
"""What is cast to what: one side is float32."""


def cast(x: Array, dtype: str) -> Array:
    """NumPy truth; bfloat16 is not a type of NumPy's."""
    return x.astype(dtype)


def kernel(source: str, target: str, n: int) -> Kernel:
    return Kernel("cast.cuh", f"hart::cast<{C_TYPES[source]}, {C_TYPES[target]}, {n}>")


KERNELS = tuple(kernel(a, b, n) for a, b in PAIRS for n in (ELEMENTS, 1))


def launch(x: Buffer, y: Buffer) -> Launch:
    size = math.prod(x.shape)
    expect_true(OP, size >= 1 and (x.dtype, y.dtype) in PAIRS, f"x is {x}, y is {y}; expected elements, and float32 on one side only.")
    expect(OP, "y", y, x.shape, (y.dtype,))
    n = lanes(size, "float32", (x, y))
    threads = threads_for(size, n, most=256)
    blocks = ceil_div(size, n * threads)
    expect_true(OP, blocks <= MAX_GRID_X, f"x is {x}, too large for one launch.")
    return Launch(kernel(x.dtype, y.dtype, n), (blocks, 1, 1), (threads, 1, 1), 0, (pointer(x), pointer(y), np.int64(size)))
