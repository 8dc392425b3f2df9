"""`layer_norm_modulate`: `y = ((x − mean)/sqrt(var + eps) (· weight + bias)) · (1 + scale) + shift`.

x, y [N, W]; weight, bias [W] (none in the diffusion head's final layer); modulation [N, k·W], of which scale and shift
are columns scale·W … and shift·W …. Float32 throughout, rounded once. y is in x's type and may be x, or float8_e4m3 with a
static scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .ahead import AheadKernel, Entry, product
from .check import MAX_GRID_X, expect, expect_rank, expect_true, lanes, pointer, threads_for
from .graph_op import Attributes, Buffers, GraphOp, Shape, rows_of
from .kernel import C_TYPES, FLOATS, FP8, ITEM_BYTES, Buffer, Kernel, Launch, minimum_of
from .quantize import Array, inverse_of, quantize

OP = "layer_norm_modulate"

LAYER_NORM_MODULATE = """
<domain: "hart", opset_import: ["" : 24]>
LayerNormModulate <epsilon> (x, modulation, weight, bias) => (y)
{
    shift, scale, gate = Split <axis = -1, num_outputs = 3> (modulation)
    normed = LayerNormalization <axis: int = -1, epsilon: float = @epsilon> (x, weight, bias)
    number = Constant <value_float: float = 1.0> ()
    one = CastLike (number, x)
    factor = Add (scale, one)
    scaled = Mul (normed, factor)
    y = Add (scaled, shift)
}
"""
GRAPH_SHIFT, GRAPH_SCALE = 0, 1
"""Parts of the modulation in a graph; the third is the gate of the block's residual."""


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


def _shapes(inputs: Sequence[Shape], attributes: Attributes) -> tuple[Shape, ...]:
    return (inputs[0],)


def _launches(inputs: Buffers, outputs: Buffers, scratch: int, attributes: Attributes) -> tuple[Launch, ...]:
    x, modulation, y = (rows_of(tensor) for tensor in (*inputs[:2], outputs[0]))
    return (launch(x, modulation, y, GRAPH_SHIFT, GRAPH_SCALE, attributes["epsilon"], (inputs[2], inputs[3])),)


def _ahead(shapes: Sequence[Shape], dtype: str, attributes: Attributes) -> Entry:
    (*leading, width), stride = shapes[0], shapes[1][-1]
    n, kind = lanes(width, dtype, ()), C_TYPES[dtype]
    parts = f"in1 + {GRAPH_SCALE * width}, in1 + {GRAPH_SHIFT * width}"
    numbers = f"{width}, {stride}, {attributes['epsilon']!r}f, 1.0f"
    call = f"hart::layer_norm_modulate<{kind}, {kind}, {n}>(in0, in2, in3, {parts}, out0, {numbers})"
    return Entry(call, (), (product(leading), 1), threads_for(width // n, 1))


GRAPH_OP = GraphOp(
    name="LayerNormModulate",
    function=LAYER_NORM_MODULATE,
    inputs=4,
    outputs=1,
    attributes={"epsilon": float},
    shapes=_shapes,
    launches=_launches,
    kernels=tuple(kernel(d, d, n) for d in FLOATS for n in (16 // ITEM_BYTES[d], 1)),
    ahead=AheadKernel("layer_norm_modulate.cuh", _ahead),
)
