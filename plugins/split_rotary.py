"""`split_rotary`: the packed product of a transformer layer to rotated q and k, and v, heads first.

    q, k: x·cos + swap(x)·sin        swap exchanges the halves of a head; v as it is

qkv [R·L, 3·H·D]; cos, sin [R, 1, L, D], tables that hold HART's two angles and the signs; q, k, v [R, H, L, D]. Float32
inside, rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .ahead import AheadKernel, Entry, product
from .check import MAX_GRID_X, expect, expect_rank, expect_true, lanes, pointer, threads_for
from .graph_op import Attributes, Buffers, GraphOp, Shape
from .kernel import C_TYPES, FLOATS, ITEM_BYTES, Buffer, Kernel, Launch
from .quantize import Array

OP = "split_rotary"

SPLIT_ROTARY = """
<domain: "hart", opset_import: ["" : 24]>
SplitRotary <heads> (qkv, cos, sin) => (q, k, v)
{
    zero = Constant <value_ints = [0]> ()
    rows = Shape <start: int = 0, end: int = 1> (cos)
    tokens = Shape <start: int = 2, end: int = 3> (cos)
    number = Constant <value_int: int = @heads> ()
    count = Unsqueeze (number, zero)
    three = Constant <value_ints = [3]> ()
    rest = Constant <value_ints = [-1]> ()
    apart = Concat <axis = 0> (rows, tokens, three, count, rest)
    parts = Reshape (qkv, apart)
    first = Transpose <perm = [2, 0, 3, 1, 4]> (parts)
    q_part, k_part, v_part = Split <axis = 0, num_outputs = 3> (first)
    q0 = Squeeze (q_part, zero)
    k0 = Squeeze (k_part, zero)
    v = Squeeze (v_part, zero)
    halves = Constant <value_ints = [0, 0, 0, 2, -1]> ()
    whole = Constant <value_ints = [0, 0, 0, -1]> ()
    other = Constant <value_ints = [1, 0]> ()
    q_halves = Reshape (q0, halves)
    q_other = Gather <axis = 3> (q_halves, other)
    q_swapped = Reshape (q_other, whole)
    q_cos = Mul (q0, cos)
    q_sin = Mul (q_swapped, sin)
    q = Add (q_cos, q_sin)
    k_halves = Reshape (k0, halves)
    k_other = Gather <axis = 3> (k_halves, other)
    k_swapped = Reshape (k_other, whole)
    k_cos = Mul (k0, cos)
    k_sin = Mul (k_swapped, sin)
    k = Add (k_cos, k_sin)
}
"""


def split_rotary(qkv: Array, cos: Array, sin: Array, heads: int) -> tuple[Array, Array, Array]:
    """NumPy truth."""
    rows, _, tokens, head_dim = cos.shape
    parts = qkv.astype(np.float32).reshape(rows, tokens, 3, heads, head_dim).transpose(2, 0, 3, 1, 4)
    q, k = (part * cos.astype(np.float32) + np.roll(part, head_dim // 2, axis=-1) * sin.astype(np.float32) for part in parts[:2])
    return q.astype(qkv.dtype), k.astype(qkv.dtype), parts[2].astype(qkv.dtype)


def kernel(dtype: str, n: int) -> Kernel:
    return Kernel("split_rotary.cuh", f"hart::split_rotary<{C_TYPES[dtype]}, {n}>")


KERNELS = tuple(kernel(d, n) for d in FLOATS for n in (16 // ITEM_BYTES[d], 1))


def launch(qkv: Buffer, cos: Buffer, sin: Buffer, q: Buffer, k: Buffer, v: Buffer) -> Launch:
    rows, heads, tokens, head_dim = expect_rank(OP, "q", q, "R H L D")
    width, one = heads * head_dim, (q.dtype,)
    expect_true(OP, head_dim % 2 == 0, f"q is {q}; the head size must be even.")
    expect(OP, "qkv", qkv, (rows * tokens, 3 * width), one)
    for name, table in (("cos", cos), ("sin", sin)):
        expect(OP, name, table, (rows, 1, tokens, head_dim), one)
    for name, part in (("k", k), ("v", v)):
        expect(OP, name, part, q.shape, one)
    expect_true(OP, rows * tokens <= MAX_GRID_X, f"q is {q}, too large for one launch.")
    n = lanes(head_dim // 2, q.dtype, (qkv, cos, sin, q, k, v))
    arguments = (*map(pointer, (qkv, cos, sin, q, k, v)), *map(np.int32, (tokens, heads, head_dim)))
    return Launch(kernel(q.dtype, n), (rows * tokens, 1, 1), (_threads(width, n), 1, 1), 0, arguments)


def _threads(width: int, n: int) -> int:
    return threads_for(width // 2 // n, 1, most=256)


def _shapes(inputs: Sequence[Shape], attributes: Attributes) -> tuple[Shape, ...]:
    rows, _, tokens, head_dim = inputs[1]
    return ((rows, int(attributes["heads"]), tokens, head_dim),) * 3


def _launches(inputs: Buffers, outputs: Buffers, scratch: int, attributes: Attributes) -> tuple[Launch, ...]:
    return (launch(*inputs, *outputs),)


def _ahead(shapes: Sequence[Shape], dtype: str, attributes: Attributes) -> Entry:
    rows, _, tokens, head_dim = shapes[1]
    heads, n = int(attributes["heads"]), 16 // ITEM_BYTES[dtype]
    n = n if head_dim // 2 % n == 0 else 1
    call = f"hart::split_rotary<{C_TYPES[dtype]}, {n}>(in0, in1, in2, out0, out1, out2, n0, {heads}, {head_dim})"
    return Entry(call, (tokens,), (product((rows, tokens)), 1), _threads(heads * head_dim, n))


GRAPH_OP = GraphOp(
    name="SplitRotary",
    function=SPLIT_ROTARY,
    inputs=3,
    outputs=3,
    attributes={"heads": int},
    shapes=_shapes,
    launches=_launches,
    kernels=KERNELS,
    ahead=AheadKernel("split_rotary.cuh", _ahead),
)
