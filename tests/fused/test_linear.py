"""Linear layers and the products behind them against NumPy, at odd sizes, in both types."""

from __future__ import annotations

import numpy as np
import pytest
from components import allocated, put
from tolerances import assert_close

from hart_edge.plugins import Buffer
from hart_edge.plugins.quantize import Array
from hart_edge.runtime.errors import InputError
from hart_edge.runtime.fused.blas import Shape
from hart_edge.runtime.fused.context import FusedContext
from hart_edge.runtime.fused.linear import Linear
from hart_edge.runtime.fused.workspace import Memory

ENTRY = {"float32": "kernel float32", "float16": "float16"}
SIZES = [(1, 8, 8), (19, 111, 33), (300, 192, 256), (37, 64, 1024), (512, 256, 768)]
"""Rows, in, out."""


def draw(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "out"), [("float32", "float32"), ("float16", "float16"), ("float16", "float32")])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("residual", ["none", "apart", "in place"])
def test_linear(context: FusedContext, size: tuple[int, int, int], dtype: str, out: str, with_bias: bool, residual: str) -> None:
    n, inner, outer = size
    x, weight = draw((n, inner), dtype, 0), draw((inner, outer), dtype, 1) / np.sqrt(inner).astype(dtype)
    bias, added = draw((outer,), out, 2), draw((n, outer), out, 3)

    def ask(memory: Memory) -> list[Buffer]:
        shapes = {"x": (x.shape, dtype), "weight": (weight.shape, dtype), "bias": (bias.shape, out), "added": (added.shape, out)}
        return [memory.buffer(name, *how) for name, how in shapes.items()] + [memory.buffer("y", added.shape, out)]

    with allocated(context, ask) as (x_at, weight_at, bias_at, added_at, y_at):
        for buffer, array in ((x_at, x), (weight_at, weight), (bias_at, bias), (added_at, added)):
            put(context, buffer, array)
        layer = Linear(context.blas, n, weight_at, bias_at if with_bias else None, out)
        target = added_at if residual == "in place" else y_at
        layer.run(x_at, target, context.stream, None if residual == "none" else added_at)
        want = x.astype(np.float64) @ weight.astype(np.float64) + (bias if with_bias else 0) + (0 if residual == "none" else added)
        assert_close(context.download(target), want.astype(out), ENTRY["float16" if "float16" in (dtype, out) else out])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_float32_products_are_not_rounded_to_tf32(context: FusedContext, dtype: str) -> None:
    """1 + 2⁻¹² has no representation in TF32, whose product with 1 would lose the difference."""
    if dtype == "float16":
        pytest.skip("float16 has fewer digits than TF32")
    x = np.full((64, 64), 1 + 2.0**-12, np.float32)

    def ask(memory: Memory) -> list[Buffer]:
        return [memory.buffer(name, (64, 64), dtype) for name in "xwy"]

    with allocated(context, ask) as (x_at, w_at, y_at):
        put(context, x_at, x)
        put(context, w_at, np.eye(64, dtype=np.float32))
        Linear(context.blas, 64, w_at).run(x_at, y_at, context.stream)
        np.testing.assert_array_equal(context.download(y_at), x)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_batches_of_strided_products(context: FusedContext, dtype: str) -> None:
    """Scores of a packed [batch, rows, 3·width] array's first part with its second, as the decoder's attention asks."""
    batch, m, k = 3, 40, 24
    packed = draw((batch, m, 3 * k), dtype, 0)

    def ask(memory: Memory) -> list[Buffer]:
        return [memory.buffer("packed", packed.shape, dtype), memory.buffer("y", (batch, m, m), dtype)]

    with allocated(context, ask) as (packed_at, y_at):
        put(context, packed_at, packed)
        strides, lead = (m * 3 * k, m * 3 * k, m * m), (3 * k, 3 * k, m)
        shape = Shape(m, m, k, dtype, dtype, transposed=True, alpha=0.25, batch=batch, strides=strides, lead=lead)
        item = np.dtype(dtype).itemsize
        context.blas.plan(shape).run(packed_at.address, packed_at.address + k * item, y_at.address, context.stream)
        q, w = (packed[:, :, part * k : (part + 1) * k].astype(np.float64) for part in (0, 1))
        assert_close(context.download(y_at), (0.25 * q @ w.swapaxes(1, 2)).astype(dtype), ENTRY[dtype])


def test_wrong_tensors_are_named() -> None:
    from emulated_scales import emulated_gpu

    blas, weight = emulated_gpu(1 << 16).blas, Buffer(4096, (8, 16), "float16")
    with pytest.raises(InputError, match=r"bias is float32 \[16\]; expected float16 \[16\]"):
        Linear(blas, 3, weight, Buffer(4096, (16,), "float32"))
    layer = Linear(blas, 3, weight)
    with pytest.raises(InputError, match=r"x is float16 \[4, 8\]; expected float16 \[3, 8\]"):
        layer.run(Buffer(4096, (4, 8), "float16"), Buffer(4096, (3, 16), "float16"), None)  # type: ignore[arg-type]
