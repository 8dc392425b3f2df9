"""`cast`: `y = x` in another type, rounded to nearest even; float8_e4m3 has a static scale. x and y have one shape, of any rank."""

from __future__ import annotations

import math

import numpy as np

from .check import MAX_GRID_X, VECTOR_BYTES, ceil_div, expect, expect_true, lanes, pointer, threads_for
from .kernel import C_TYPES, FLOATS, FP8, ITEM_BYTES, Buffer, Kernel, Launch, minimum_of
from .quantize import QUANTIZED, Array, inverse_of, quantize

OP = "cast"
PAIRS = (*((a, b) for a in FLOATS for b in FLOATS if (a == "float32") != (b == "float32")), *((a, FP8) for a in FLOATS))
"""What is cast to what: floats where one side is float32, and any float to FP8."""


def cast(x: Array, dtype: str, scale: float | None = None) -> Array:
    """NumPy truth; bfloat16 is not a type of NumPy's, float8_e4m3 comes as its codes."""
    return quantize(x, scale, dtype) if dtype in QUANTIZED else x.astype(dtype)


def kernel(source: str, target: str, n: int) -> Kernel:
    return Kernel("cast.cuh", f"hart::cast<{C_TYPES[source]}, {C_TYPES[target]}, {n}>", minimum_of(target))


def wider(a: str, b: str) -> str:
    """Of two types: a thread takes 16 bytes of it."""
    return max(a, b, key=ITEM_BYTES.__getitem__)


KERNELS = tuple(kernel(a, b, n) for a, b in PAIRS for n in (VECTOR_BYTES // ITEM_BYTES[wider(a, b)], 1))


def launch(x: Buffer, y: Buffer, scale: float | None = None) -> Launch:
    size = math.prod(x.shape)
    known = size >= 1 and (x.dtype, y.dtype) in PAIRS
    expect_true(OP, known, f"x is {x}, y is {y}; expected elements, and float32 on one side only or {FP8} as y.")
    expect(OP, "y", y, x.shape, (y.dtype,))
    inverse = inverse_of(OP, scale, y.dtype in QUANTIZED)
    n = lanes(size, wider(x.dtype, y.dtype), (x, y))
    threads = threads_for(size, n, most=256)
    blocks = ceil_div(size, n * threads)
    expect_true(OP, blocks <= MAX_GRID_X, f"x is {x}, too large for one launch.")
    return Launch(kernel(x.dtype, y.dtype, n), (blocks, 1, 1), (threads, 1, 1), 0, (pointer(x), pointer(y), np.int64(size), inverse))
