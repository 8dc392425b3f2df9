"""`swiglu`: `y = silu(gate) · up`, rounded once.

Packed: gate_up [rows, 2F], gate first; or gate, up [rows, F] apart. y [rows, F] in their type, or int8 / float8_e4m3 with
a static scale.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .check import MAX_GRID_X, MAX_GRID_YZ, ceil_div, expect, expect_rank, expect_true, lanes, pointer, threads_for
from .kernel import C_TYPES, FLOATS, ITEM_BYTES, Buffer, Kernel, Launch, minimum_of
from .quantize import QUANTIZED, Array, inverse_of, quantize

OP = "swiglu"


def swiglu(gate: Array, up: Array | None = None, scale: float | None = None, dtype: str = "") -> Array:
    """NumPy truth; without `up`, gate is the packed [rows, 2F]."""
    g, u = np.split(gate, 2, axis=-1) if up is None else (gate, up)
    g, u = g.astype(np.float32), u.astype(np.float32)
    with np.errstate(over="ignore"):  # exp(−gate) may be infinite: silu is then −0
        y = (g / (1 + np.exp(-g)) * u).astype(gate.dtype)
    return quantize(y, scale, dtype)


def kernel(dtype: str, out: str, n: int) -> Kernel:
    return Kernel("swiglu.cuh", f"hart::swiglu<{C_TYPES[dtype]}, {C_TYPES[out]}, {n}>", minimum_of(out))


KERNELS = tuple(kernel(d, out, n) for d in FLOATS for out in (d, *QUANTIZED) for n in (16 // ITEM_BYTES[d], 1))


def launch(gate: Buffer, y: Buffer, up: Buffer | None = None, scale: float | None = None) -> Launch:
    rows, width = expect_rank(OP, "gate", gate, "rows F")
    stride = width
    if up is None:
        expect_true(OP, width % 2 == 0, f"gate is {gate}; a packed input has an even width.")
        width //= 2
        up = replace(gate, address=gate.address + width * ITEM_BYTES[gate.dtype])
    else:
        expect(OP, "up", up, (rows, width), (gate.dtype,))
    expect(OP, "y", y, (rows, width), (gate.dtype, *QUANTIZED))
    inverse = inverse_of(OP, scale, y.dtype in QUANTIZED)
    n = lanes(width, gate.dtype, (gate, up, y))
    threads = threads_for(width // n, 1, most=256)
    columns = ceil_div(width // n, threads)
    expect_true(OP, rows <= MAX_GRID_X and columns <= MAX_GRID_YZ, f"gate is {gate}, too large for one launch.")
    arguments = (pointer(gate), pointer(up), pointer(y), np.int32(width), np.int32(stride), inverse)
    return Launch(kernel(gate.dtype, y.dtype, n), (rows, columns, 1), (threads, 1, 1), 0, arguments)
