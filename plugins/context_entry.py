"""`context_entry`: `x = e + level`, `pooled = silu(max over tokens of e)`, in one reading of e.

e, x [B, T, C], level [C], pooled [B, C], one element type; x may be e.
"""

from __future__ import annotations

import numpy as np

from .check import MAX_GRID_YZ, ceil_div, expect, expect_rank, expect_true, pointer
from .kernel import C_TYPES, FLOATS, Buffer, Kernel, Launch
from .quantize import Array

OP = "context_entry"
_THREADS, _COLUMNS = 256, 32


def context_entry(e: Array, level: Array) -> tuple[Array, Array]:
    """NumPy truth: x and pooled."""
    x = (e.astype(np.float32) + level.astype(np.float32)).astype(e.dtype)
    most = e.astype(np.float32).max(axis=1)
    return x, (most / (1 + np.exp(-most))).astype(e.dtype)


def kernel(dtype: str) -> Kernel:
    return Kernel("context_entry.cuh", f"hart::context_entry<{C_TYPES[dtype]}>")


KERNELS = tuple(kernel(d) for d in FLOATS)


def launch(e: Buffer, level: Buffer, x: Buffer, pooled: Buffer) -> Launch:
    batch, tokens, width = expect_rank(OP, "e", e, "B T C")
    expect(OP, "level", level, (width,), (e.dtype,))
    expect(OP, "x", x, (batch, tokens, width), (e.dtype,))
    expect(OP, "pooled", pooled, (batch, width), (e.dtype,))
    expect_true(OP, batch <= MAX_GRID_YZ, f"e is {e}, too large for one launch.")
    arguments = (*map(pointer, (e, level, x, pooled)), np.int32(tokens), np.int32(width))
    return Launch(kernel(e.dtype), (ceil_div(width, _COLUMNS), batch, 1), (_THREADS, 1, 1), 0, arguments)
