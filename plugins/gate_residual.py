"""`gate_residual`: `out = h + gate · y`, rounded once.

h, y, out [N, W]; gate is part number `gate` of modulation [N, k·W]. out may be h or y.
"""

from __future__ import annotations

import numpy as np

from .check import MAX_GRID_X, MAX_GRID_YZ, ceil_div, expect, expect_rank, expect_true, lanes, pointer, threads_for
from .kernel import C_TYPES, FLOATS, ITEM_BYTES, Buffer, Kernel, Launch
from .layer_norm_modulate import part_of
from .quantize import Array

OP = "gate_residual"


def gate_residual(h: Array, modulation: Array, gate: int, y: Array) -> Array:
    """NumPy truth."""
    width = h.shape[1]
    g = modulation[:, gate * width : (gate + 1) * width]
    return (h.astype(np.float32) + g.astype(np.float32) * y.astype(np.float32)).astype(h.dtype)


def kernel(dtype: str, n: int) -> Kernel:
    return Kernel("gate_residual.cuh", f"hart::gate_residual<{C_TYPES[dtype]}, {n}>")


KERNELS = tuple(kernel(d, n) for d in FLOATS for n in (16 // ITEM_BYTES[d], 1))


def launch(h: Buffer, modulation: Buffer, gate: int, y: Buffer, out: Buffer) -> Launch:
    rows, width = expect_rank(OP, "h", h, "N W")
    _, stride = expect_rank(OP, "modulation", modulation, "N kW", (h.dtype,))
    expect(OP, "modulation", modulation, (rows, stride), (h.dtype,))
    for name, buffer in (("y", y), ("out", out)):
        expect(OP, name, buffer, (rows, width), (h.dtype,))
    n = lanes(width, h.dtype, (h, modulation, y, out))
    threads = threads_for(width // n, 1, most=256)
    columns = ceil_div(width // n, threads)
    expect_true(OP, rows <= MAX_GRID_X and columns <= MAX_GRID_YZ, f"h is {h}, too large for one launch.")
    pointers = map(pointer, (h, part_of(OP, modulation, gate, width), y, out))
    return Launch(kernel(h.dtype, n), (rows, columns, 1), (threads, 1, 1), 0, (*pointers, np.int32(width), np.int32(stride)))
