"""`group_norm_silu`: `y = silu((x − mean_g)/sqrt(var_g + eps) · weight + bias)`, 32 groups, channels last.

x, y [B, H, W, C]; weight, bias [C]; C a multiple of 32, as the config demands of every width. Statistics are float32
sums of bounded length, added up in float64; the rest is float32, rounded once. Without `silu` it is the norm of the
attention blocks. y may be x. Three launches: a single cooperative kernel would hold every block of a 335 MB tensor
resident for the grid-wide wait, and would have to know the device's size.

There is no path for unaligned memory: C is a multiple of 32, so only a buffer that does not start on 16 bytes would need
one, and no allocator returns that.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from .check import MAX_GRID_YZ, ceil_div, expect, expect_rank, expect_shared, expect_true, lanes, pointer
from .graph_op import Attributes, Buffers, GraphOp, Shape
from .kernel import C_TYPES, FLOATS, ITEM_BYTES, Buffer, Kernel, Launch
from .quantize import Array

OP = "group_norm_silu"
GROUPS = 32

_ONES, _ZEROS = (", ".join([text] * GROUPS) for text in ("1.0", "0.0"))
GROUP_NORM_SILU = f"""
<domain: "hart", opset_import: ["" : 18]>
GroupNormSilu <epsilon, height, width> (x, weight, bias) => (y)
{{
    grouping = Constant <value_ints = [0, {GROUPS}, -1]> ()
    grouped = Reshape (x, grouping)
    ones = Constant <value_floats = [{_ONES}]> ()
    zeros = Constant <value_floats = [{_ZEROS}]> ()
    gain = CastLike (ones, x)
    offset = CastLike (zeros, x)
    normed = InstanceNormalization <epsilon: float = @epsilon> (grouped, gain, offset)
    keep = Constant <value_ints = [0]> ()
    rest = Constant <value_ints = [-1]> ()
    rows = Constant <value_int: int = @height> ()
    columns = Constant <value_int: int = @width> ()
    rows_axis = Unsqueeze (rows, keep)
    columns_axis = Unsqueeze (columns, keep)
    back = Concat <axis = 0> (keep, rest, rows_axis, columns_axis)
    flat = Reshape (normed, back)
    axes = Constant <value_ints = [1, 2]> ()
    weights = Unsqueeze (weight, axes)
    biases = Unsqueeze (bias, axes)
    scaled = Mul (flat, weights)
    moved = Add (scaled, biases)
    share = Sigmoid (moved)
    y = Mul (moved, share)
}}
"""
MAX_CHUNKS = 512
_SOURCE = "group_norm_silu.cuh"
_THREADS = 256
_PIXELS = 8  # per thread and block: long enough to hide the block's set-up, short enough to fill a GPU at 64 × 64


def group_norm_silu(x: Array, weight: Array, bias: Array, eps: float, silu: bool = True) -> Array:
    """NumPy truth, statistics in float64."""
    grouped = x.astype(np.float64).reshape(x.shape[0], -1, GROUPS, x.shape[-1] // GROUPS)
    mean, variance = grouped.mean(axis=(1, 3), keepdims=True), grouped.var(axis=(1, 3), keepdims=True)
    normed = ((grouped - mean) / np.sqrt(variance + eps)).reshape(x.shape).astype(np.float32)
    y = normed * weight.astype(np.float32) + bias.astype(np.float32)
    return (y / (1 + np.exp(-y)) if silu else y).astype(x.dtype)


def statistics_kernel(dtype: str) -> Kernel:
    return Kernel(_SOURCE, f"hart::group_norm_statistics<{C_TYPES[dtype]}, {16 // ITEM_BYTES[dtype]}>")


def fold_kernel(dtype: str) -> Kernel:
    return Kernel(_SOURCE, f"hart::group_norm_fold<{C_TYPES[dtype]}>")


def apply_kernel(dtype: str, silu: bool) -> Kernel:
    return Kernel(_SOURCE, f"hart::group_norm_apply<{C_TYPES[dtype]}, {16 // ITEM_BYTES[dtype]}, {str(silu).lower()}>")


KERNELS = tuple(k for d in FLOATS for k in (statistics_kernel(d), fold_kernel(d), apply_kernel(d, True), apply_kernel(d, False)))


def scratch_shapes(shape: tuple[int, ...], dtype: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the float32 buffers `partial` and `affine` for an x of this shape."""
    batch, height, width, channels = shape
    _, _, chunks = _plan(height * width, channels, dtype)
    return (batch, chunks, 2, GROUPS), (batch, 2, channels)


def launches(
    x: Buffer, weight: Buffer, bias: Buffer, partial: Buffer, affine: Buffer, y: Buffer, eps: float, silu: bool = True
) -> tuple[Launch, ...]:
    """To be run in this order; partial and affine are scratch of `scratch_shapes`."""
    batch, height, width, channels = expect_rank(OP, "x", x, "B H W C")
    pixels, count = height * width, 16 // ITEM_BYTES[x.dtype]
    expect_true(OP, channels % GROUPS == 0, f"x is {x}; its channels must be a multiple of {GROUPS}.")
    expect_true(OP, channels // count <= 1024, f"x is {x}; expected at most {1024 * count} channels.")
    expect_true(OP, batch <= MAX_GRID_YZ and pixels < 2**31, f"x is {x}, too large for one launch.")
    for name, buffer in (("weight", weight), ("bias", bias)):
        expect(OP, name, buffer, (channels,), (x.dtype,))
    expect(OP, "y", y, x.shape, (x.dtype,))
    for name, buffer, shape in zip(("partial", "affine"), (partial, affine), scratch_shapes(x.shape, x.dtype), strict=True):
        expect(OP, name, buffer, shape, ("float32",))
    expect_true(OP, lanes(channels, x.dtype, (x, y)) == count, f"x at {x.address:#x} and y at {y.address:#x} must start on 16 bytes.")
    block_x, block_y, chunks = _plan(pixels, channels, x.dtype)
    shared = expect_shared(OP, 2 * block_y * channels * 4, "x")
    block, apply_chunk = (block_x, block_y, 1), block_y * _PIXELS
    sizes = (np.int32(pixels), np.int32(channels))
    fold = (*map(pointer, (x, partial, weight, bias, affine)), *sizes, np.int32(chunks), np.float32(eps))
    return (
        Launch(statistics_kernel(x.dtype), (chunks, batch, 1), block, shared, (pointer(x), pointer(partial), *sizes)),
        Launch(fold_kernel(x.dtype), (batch, 1, 1), (32 * GROUPS, 1, 1), 0, fold),
        Launch(
            apply_kernel(x.dtype, silu),
            (ceil_div(pixels, apply_chunk), batch, 1),
            block,
            0,
            (*map(pointer, (x, affine, y)), *sizes, np.int32(apply_chunk)),
        ),
    )


def _plan(pixels: int, channels: int, dtype: str) -> tuple[int, int, int]:
    """Threads across the channels, pixels at a time, number of chunks that the statistics are taken in."""
    across = channels * ITEM_BYTES[dtype] // 16
    rows = max(1, _THREADS // across)
    return across, rows, min(MAX_CHUNKS, ceil_div(pixels, rows * _PIXELS))


def _shapes(inputs: Sequence[Shape], attributes: Attributes) -> tuple[Shape, ...]:
    return (inputs[0],)


def _scratch(shape: tuple[int, ...], dtype: str) -> int:
    return sum(4 * prod(part) for part in scratch_shapes(shape, dtype))


def _launches(inputs: Buffers, outputs: Buffers, scratch: int, attributes: Attributes) -> tuple[Launch, ...]:
    x, weight, bias = inputs
    partial, affine = scratch_shapes(x.shape, x.dtype)
    first = Buffer(scratch, partial, "float32")
    second = Buffer(scratch + 4 * prod(partial), affine, "float32")
    return launches(x, weight, bias, first, second, outputs[0], attributes["epsilon"])


GRAPH_OP = GraphOp(
    name="GroupNormSilu",
    function=GROUP_NORM_SILU,
    inputs=3,
    outputs=1,
    attributes={"epsilon": float, "height": int, "width": int},
    shapes=_shapes,
    launches=_launches,
    kernels=tuple(k for d in FLOATS for k in (statistics_kernel(d), fold_kernel(d), apply_kernel(d, True))),
    channels_last=True,
    scratch=_scratch,
)
