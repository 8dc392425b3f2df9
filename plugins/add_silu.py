"""`add_silu`: `y = silu(x (+ row))`, rounded once: SiLU behind a product, and time plus condition of the diffusion MLP.

x, y [rows, W]; row [W], the same for all rows. y is in x's type and may be x, or float8_e4m3 with a static scale.
"""

from __future__ import annotations

import numpy as np

from .check import MAX_GRID_X, MAX_GRID_YZ, ceil_div, expect, expect_rank, expect_true, lanes, pointer, threads_for
from .kernel import C_TYPES, FLOATS, FP8, ITEM_BYTES, Buffer, Kernel, Launch, minimum_of
from .quantize import Array, inverse_of, quantize

OP = "add_silu"


def add_silu(x: Array, row: Array | None = None, scale: float | None = None, dtype: str = "") -> Array:
    """NumPy truth: y in x's type, or quantised to `dtype`."""
    f = x.astype(np.float32)
    f = f if row is None else f + row.astype(np.float32)
    with np.errstate(over="ignore"):  # exp(−f) may be infinite: silu is then −0
        y: Array = (f / (1 + np.exp(-f))).astype(x.dtype)
    return quantize(y, scale, dtype)


def kernel(dtype: str, out: str, n: int) -> Kernel:
    return Kernel("add_silu.cuh", f"hart::add_silu<{C_TYPES[dtype]}, {C_TYPES[out]}, {n}>", minimum_of(out))


KERNELS = tuple(kernel(d, out, n) for d in FLOATS for out in (d, FP8) for n in (16 // ITEM_BYTES[d], 1))


def launch(x: Buffer, y: Buffer, row: Buffer | None = None, scale: float | None = None) -> Launch:
    rows, width = expect_rank(OP, "x", x, "rows W")
    expect(OP, "y", y, (rows, width), (x.dtype, FP8))
    inverse = inverse_of(OP, scale, y.dtype == FP8)
    if row is not None:
        expect(OP, "row", row, (width,), (x.dtype,))
    n = lanes(width, x.dtype, (x, row, y))
    threads = threads_for(width // n, 1, most=256)
    columns = ceil_div(width // n, threads)
    expect_true(OP, rows <= MAX_GRID_X and columns <= MAX_GRID_YZ, f"x is {x}, too large for one launch.")
    arguments = (pointer(x), pointer(row), pointer(y), np.int32(width), inverse)
    return Launch(kernel(x.dtype, y.dtype, n), (rows, columns, 1), (threads, 1, 1), 0, arguments)
