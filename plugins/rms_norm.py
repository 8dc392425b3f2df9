"""`rms_norm`: the residual add, RMSNorm, the head's modulation and quantisation in one pass.

    s = x (+ residual);  y = round(s / sqrt(mean(s²) + eps)) · weight  (· (1 + scale) + shift)

x, residual, sum, y [rows, C]; weight [C]; scale, shift [rows / tokens, C]. Statistics are float32; s and the normalised
value are rounded to x's type, as in the reference; what follows is rounded once. int8 and float8_e4m3 outputs have a
static scale. Without residual a block takes two rows, which it keeps in registers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .ahead import AheadKernel, Entry, product
from .check import MAX_GRID_X, MAX_GRID_YZ, VECTOR_BYTES, ceil_div, expect, expect_rank, expect_true, lanes, pointer, threads_for
from .graph_op import Attributes, Buffers, GraphOp, Shape, rows_of
from .kernel import C_TYPES, FLOATS, ITEM_BYTES, Buffer, Kernel, Launch, minimum_of
from .quantize import QUANTIZED, Array, inverse_of, quantize

OP = "rms_norm"

ADD_RMS_NORM = """
<domain: "hart", opset_import: ["" : 24]>
AddRmsNorm <epsilon> (x, residual, weight) => (y, sum)
{
    sum = Add (x, residual)
    y = RMSNormalization <axis: int = -1, epsilon: float = @epsilon> (sum, weight)
}
"""


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


def pair_kernel(dtype: str, out: str) -> Kernel:
    """Two rows a block, without residual; 16-byte accesses."""
    n = VECTOR_BYTES // ITEM_BYTES[dtype]
    return Kernel("rms_norm.cuh", f"hart::rms_norm_pair<{C_TYPES[dtype]}, {C_TYPES[out]}, {n}>", minimum_of(out))


_TYPES = tuple((d, out) for d in FLOATS for out in (d, *QUANTIZED))
KERNELS = (
    *(kernel(d, out, n) for d, out in _TYPES for n in (VECTOR_BYTES // ITEM_BYTES[d], 1)),
    *(pair_kernel(d, out) for d, out in _TYPES),
)


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
    groups = 1
    if a is not None and b is not None:
        groups, _ = expect_rank(OP, "scale", a, "R C", (x.dtype,))
        expect_true(OP, rows % groups == 0, f"scale is {a}; its rows must divide the {rows} rows of x.")
        expect(OP, "scale", a, (groups, width), (x.dtype,))
        expect(OP, "shift", b, (groups, width), (x.dtype,))
    expect_true(OP, rows <= MAX_GRID_X, f"x has {rows} rows; expected at most {MAX_GRID_X}.")
    expect_true(OP, groups <= MAX_GRID_YZ, f"scale is {a}; expected at most {MAX_GRID_YZ} rows.")
    inverse = inverse_of(OP, scale, y.dtype in QUANTIZED)
    n = lanes(width, x.dtype, (x, weight, y, added, total, a, b))
    threads, each = threads_for(width // n, 2), rows // groups
    if added is None and n > 1 and 2 * n * threads >= width:
        sizes = (np.int32(width), np.int32(each), np.float32(eps), inverse)
        grid = (ceil_div(each, 2), groups, 1)
        return Launch(pair_kernel(x.dtype, y.dtype), grid, (threads, 1, 1), 0, (*map(pointer, (x, weight, a, b, y)), *sizes))
    buffers = (pointer(x), pointer(added), pointer(total), pointer(weight), pointer(a), pointer(b), pointer(y))
    numbers = (np.int32(width), np.float32(eps), inverse)
    return Launch(kernel(x.dtype, y.dtype, n), (each, groups, 1), (threads, 1, 1), 0, (*buffers, *numbers))


def _shapes(inputs: Sequence[Shape], attributes: Attributes) -> tuple[Shape, ...]:
    return (inputs[0], inputs[0])


def _launches(inputs: Buffers, outputs: Buffers, scratch: int, attributes: Attributes) -> tuple[Launch, ...]:
    x, residual, weight = rows_of(inputs[0]), rows_of(inputs[1]), inputs[2]
    y, total = map(rows_of, outputs)
    return (launch(x, weight, y, attributes["epsilon"], (residual, total)),)


def _ahead(shapes: Sequence[Shape], dtype: str, attributes: Attributes) -> Entry:
    *leading, width = shapes[0]
    n, kind = lanes(width, dtype, ()), C_TYPES[dtype]
    numbers = f"{width}, {attributes['epsilon']!r}f, 1.0f"
    call = f"hart::rms_norm<{kind}, {kind}, {n}>(in0, in1, out1, in2, nullptr, nullptr, out0, {numbers})"
    return Entry(call, (), (product(leading), 1), threads_for(width // n, 2))


GRAPH_OP = GraphOp(
    name="AddRmsNorm",
    function=ADD_RMS_NORM,
    inputs=3,
    outputs=2,
    attributes={"epsilon": float},
    shapes=_shapes,
    launches=_launches,
    kernels=tuple(kernel(d, d, n) for d in FLOATS for n in (16 // ITEM_BYTES[d], 1)),
    ahead=AheadKernel("rms_norm.cuh", _ahead),
)
