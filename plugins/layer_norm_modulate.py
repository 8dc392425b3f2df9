"""`layer_norm_modulate`: `y = ((x − mean)/sqrt(var + eps) (· weight + bias)) · (1 + scale) + shift`.

x, y [N, W]; weight, bias [W] (none in the diffusion head's final layer); modulation [N, k·W], of which scale and shift
are columns scale·W … and shift·W …. Float32 throughout, rounded once. y is in x's type and may be x, or float8_e4m3 with a
static scale.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .check import MAX_GRID_X, expect, expect_rank, expect_true, lanes, pointer, threads_for
from .kernel import C_TYPES, FLOATS, FP8, ITEM_BYTES, Buffer, Kernel, Launch, minimum_of
from .quantize import Array, inverse_of, quantize

OP = "layer_norm_modulate"


def layer_norm_modulate(
    x: Array,
    modulation: Array,
    shift: int,
    scale: int,
    eps: float,
    affine: tuple[Array, Array] | None = None,
    step: float | None = None,
    dtype: str = "",
) -> Array:
    """NumPy truth, in x's type or quantised to `dtype` with the static scale `step`.

    shift and scale are the numbers of their parts in `modulation`.
    """
    f, width = x.astype(np.float32), x.shape[1]
    centred = f - f.mean(axis=-1, keepdims=True)
    y = centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(eps))
    if affine is not None:
        y = y * affine[0].astype(np.float32) + affine[1].astype(np.float32)
    a, b = (modulation[:, part * width : (part + 1) * width].astype(np.float32) for part in (scale, shift))
    return quantize((y * (1 + a) + b).astype(x.dtype), step, dtype)


def kernel(dtype: str, out: str, n: int) -> Kernel:
    expression = f"hart::layer_norm_modulate<{C_TYPES[dtype]}, {C_TYPES[out]}, {n}>"
    return Kernel("layer_norm_modulate.cuh", expression, minimum_of(out))


KERNELS = tuple(kernel(d, out, n) for d in FLOATS for out in (d, FP8) for n in (16 // ITEM_BYTES[d], 1))


def part_of(op: str, modulation: Buffer, part: int, width: int) -> Buffer:
    """Part number `part` of packed modulations [N, k·W]: same rows, its first column; the stride stays k·W."""
    parts = modulation.shape[1] // width
    expect_true(op, modulation.shape[1] % width == 0, f"modulation is {modulation}; its width must be a multiple of {width}.")
    expect_true(op, 0 <= part < parts, f"part {part} of modulation {modulation}; it has {parts} of width {width}.")
    return replace(modulation, address=modulation.address + part * width * ITEM_BYTES[modulation.dtype])


def launch(
    x: Buffer,
    modulation: Buffer,
    y: Buffer,
    shift: int,
    scale: int,
    eps: float,
    affine: tuple[Buffer, Buffer] | None = None,
    step: float | None = None,
) -> Launch:
    """step: the static scale of a float8_e4m3 y; `scale` is the modulation's part."""
    rows, width = expect_rank(OP, "x", x, "N W")
    _, stride = expect_rank(OP, "modulation", modulation, "N kW", (x.dtype,))
    expect(OP, "modulation", modulation, (rows, stride), (x.dtype,))
    expect(OP, "y", y, (rows, width), (x.dtype, FP8))
    inverse = inverse_of(OP, step, y.dtype == FP8)
    weight, bias = affine or (None, None)
    for name, buffer in (("weight", weight), ("bias", bias)):
        if buffer is not None:
            expect(OP, name, buffer, (width,), (x.dtype,))
    a, b = part_of(OP, modulation, scale, width), part_of(OP, modulation, shift, width)
    expect_true(OP, rows <= MAX_GRID_X, f"x has {rows} rows; expected at most {MAX_GRID_X}.")
    n = lanes(width, x.dtype, (x, modulation, y, weight, bias))
    arguments = (*map(pointer, (x, weight, bias, a, b, y)), np.int32(width), np.int32(stride), np.float32(eps), inverse)
    return Launch(kernel(x.dtype, y.dtype, n), (rows, 1, 1), (threads_for(width // n, 1), 1, 1), 0, arguments)
