"""`swiglu`: `y = silu(gate) · up`, rounded once.

Packed: gate_up [rows, 2F], gate first; or gate, up [rows, F] apart. y [rows, F] in their type, or int8 / float8_e4m3 with
a static scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .ahead import AheadKernel, Entry, product
from .check import MAX_GRID_X, MAX_GRID_YZ, ceil_div, expect, expect_rank, expect_true, lanes, pointer, threads_for
from .graph_op import Attributes, Buffers, GraphOp, Shape, rows_of
from .kernel import C_TYPES, FLOATS, ITEM_BYTES, Buffer, Kernel, Launch, minimum_of
from .quantize import QUANTIZED, Array, inverse_of, quantize

OP = "swiglu"
MOST_THREADS = 256

SWIGLU = """
<domain: "hart", opset_import: ["" : 24]>
SwiGlu (gate, up) => (y)
{
    share = Sigmoid (gate)
    silu = Mul (gate, share)
    y = Mul (silu, up)
}
"""


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
    threads = threads_for(width // n, 1, most=MOST_THREADS)
    columns = ceil_div(width // n, threads)
    expect_true(OP, rows <= MAX_GRID_X and columns <= MAX_GRID_YZ, f"gate is {gate}, too large for one launch.")
    arguments = (pointer(gate), pointer(up), pointer(y), np.int32(width), np.int32(stride), inverse)
    return Launch(kernel(gate.dtype, y.dtype, n), (rows, columns, 1), (threads, 1, 1), 0, arguments)


def _shapes(inputs: Sequence[Shape], attributes: Attributes) -> tuple[Shape, ...]:
    return (inputs[0],)


def _launches(inputs: Buffers, outputs: Buffers, scratch: int, attributes: Attributes) -> tuple[Launch, ...]:
    return (launch(rows_of(inputs[0]), rows_of(outputs[0]), rows_of(inputs[1])),)


def _ahead(shapes: Sequence[Shape], dtype: str, attributes: Attributes) -> Entry:
    *leading, width = shapes[0]
    n, kind = lanes(width, dtype, ()), C_TYPES[dtype]
    threads = threads_for(width // n, 1, most=MOST_THREADS)
    call = f"hart::swiglu<{kind}, {kind}, {n}>(in0, in1, out0, {width}, {width}, 1.0f)"
    return Entry(call, (), (product(leading), ceil_div(width // n, threads)), threads)


GRAPH_OP = GraphOp(
    name="SwiGlu",
    function=SWIGLU,
    inputs=2,
    outputs=1,
    attributes={},
    shapes=_shapes,
    launches=_launches,
    kernels=tuple(kernel(d, d, n) for d in FLOATS for n in (16 // ITEM_BYTES[d], 1)),
    ahead=AheadKernel("swiglu.cuh", _ahead),
)
