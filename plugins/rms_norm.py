"""`rms_norm`: the residual add, RMSNorm, the head's modulation and quantisation in one pass.

    s = x (+ residual);  y = round(s / sqrt(mean(s²) + eps)) · weight  (· (1 + scale) + shift)

x, residual, sum, y [rows, C]; weight [C]; scale, shift [rows / tokens, C]. Statistics are float32; s and the normalised
value are rounded to x's type, as in the reference; what follows is rounded once. int8 and float8_e4m3 outputs have a
static scale.
"""

from __future__ import annotations

import numpy as np

from .check import MAX_GRID_X, expect, expect_rank, expect_true, lanes, pointer, threads_for
from .kernel import C_TYPES, FLOATS, ITEM_BYTES, Buffer, Kernel, Launch, minimum_of
from .quantize import QUANTIZED, Array, inverse_of, quantize

OP = "rms_norm"


def rms_norm(
    x: Array,
    weight: Array,
    eps: float,
    residual: Array | None = None,
    modulation: tuple[Array, Array] | None = None,
    scale: float | None = None,
    dtype: str = "",
) -> tuple[Array, Array]:
    """NumPy truth: (y, s), s in x's type, y in x's type or quantised to `dtype`."""
    s = x if residual is None else (x.astype(np.float32) + residual.astype(np.float32)).astype(x.dtype)
    f = s.astype(np.float32)
    normed = (f / np.sqrt(np.mean(f * f, axis=-1, keepdims=True) + np.float32(eps))).astype(x.dtype)
    y = normed.astype(np.float32) * weight.astype(np.float32)
    if modulation is not None:
        a, b = (np.repeat(m.astype(np.float32), x.shape[0] // m.shape[0], axis=0) for m in modulation)
        y = y * (1 + a) + b
    return quantize(y.astype(x.dtype), scale, dtype), s


def kernel(dtype: str, out: str, n: int) -> Kernel:
    return Kernel("rms_norm.cuh", f"hart::rms_norm<{C_TYPES[dtype]}, {C_TYPES[out]}, {n}>", minimum_of(out))


KERNELS = tuple(kernel(d, out, n) for d in FLOATS for out in (d, *QUANTIZED) for n in (16 // ITEM_BYTES[d], 1))


def launch(
    x: Buffer,
    weight: Buffer,
    y: Buffer,
    eps: float,
    residual: tuple[Buffer, Buffer] | None = None,
    modulation: tuple[Buffer, Buffer] | None = None,
    scale: float | None = None,
) -> Launch:
    """residual: (what is added, where the sum goes; they may be one buffer). modulation: (scale, shift)."""
    rows, width = expect_rank(OP, "x", x, "rows C")
    expect(OP, "weight", weight, (width,), (x.dtype,))
    expect(OP, "y", y, (rows, width), (x.dtype, *QUANTIZED))
    added, total = residual or (None, None)
    for name, buffer in (("residual", added), ("sum", total)):
        if buffer is not None:
            expect(OP, name, buffer, (rows, width), (x.dtype,))
    a, b = modulation or (None, None)
    tokens = rows
    if a is not None and b is not None:
        groups, _ = expect_rank(OP, "scale", a, "R C", (x.dtype,))
        expect_true(OP, rows % groups == 0, f"scale is {a}; its rows must divide the {rows} rows of x.")
        expect(OP, "scale", a, (groups, width), (x.dtype,))
        expect(OP, "shift", b, (groups, width), (x.dtype,))
        tokens = rows // groups
    expect_true(OP, rows <= MAX_GRID_X, f"x has {rows} rows; expected at most {MAX_GRID_X}.")
    inverse = inverse_of(OP, scale, y.dtype in QUANTIZED)
    n = lanes(width, x.dtype, (x, weight, y, added, total, a, b))
    buffers = (pointer(x), pointer(added), pointer(total), pointer(weight), pointer(a), pointer(b), pointer(y))
    numbers = (np.int32(width), np.int32(tokens), np.float32(eps), inverse)
    return Launch(kernel(x.dtype, y.dtype, n), (rows, 1, 1), (threads_for(width // n, 2), 1, 1), 0, (*buffers, *numbers))
