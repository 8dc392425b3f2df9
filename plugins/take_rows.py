"""`take_rows`: rows of a table by index, repeated for both guidance halves: `y[r] = table[index[r mod count]]`.

table [V, W]; index [count] int64, each in 0 … V − 1 (not checked on the device); y [rows, W], rows a multiple of count.
"""

from __future__ import annotations

import numpy as np

from .check import MAX_GRID_X, MAX_GRID_YZ, ceil_div, expect, expect_rank, expect_true, lanes, pointer, threads_for
from .kernel import C_TYPES, FLOATS, ITEM_BYTES, Buffer, Kernel, Launch
from .quantize import Array

OP = "take_rows"


def take_rows(table: Array, index: Array, rows: int) -> Array:
    """NumPy truth."""
    taken: Array = table[np.resize(index, rows)]
    return taken


def kernel(dtype: str, n: int) -> Kernel:
    return Kernel("take_rows.cuh", f"hart::take_rows<{C_TYPES[dtype]}, {n}>")


KERNELS = tuple(kernel(d, n) for d in FLOATS for n in (16 // ITEM_BYTES[d], 1))


def launch(table: Buffer, index: Buffer, y: Buffer) -> Launch:
    _, width = expect_rank(OP, "table", table, "V W")
    rows, _ = expect_rank(OP, "y", y, "rows W")
    expect(OP, "y", y, (rows, width), (table.dtype,))
    (count,) = expect_rank(OP, "index", index, "count", ("int64",))
    expect_true(OP, rows % count == 0, f"y is {y}; its rows must be a multiple of the {count} indices.")
    n = lanes(width, table.dtype, (table, y))
    threads = threads_for(width // n, 1, most=256)
    columns = ceil_div(width // n, threads)
    expect_true(OP, rows <= MAX_GRID_X and columns <= MAX_GRID_YZ, f"y is {y}, too large for one launch.")
    arguments = (pointer(table), pointer(index), pointer(y), np.int32(count), np.int32(width))
    return Launch(kernel(table.dtype, n), (rows, columns, 1), (threads, 1, 1), 0, arguments)
