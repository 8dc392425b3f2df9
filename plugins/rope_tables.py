"""`rope_tables`: rotary embedding from tables, and k and v written straight into the caches.

    out = x·cos + swap(x)·sin,  swap exchanging the halves of a head, signs in sin

qkv [R·L, (H + 2·KV)·D] with biases added; cos, sin [1 or R, L, D] → q [R, L, H, D]; caches [R, KV, capacity, D] at
positions start … start + L − 1. gain [H]: q and k are divided by their length per head and q is multiplied by its head's
gain. All in one element type; float32 inside.

`rope_cache` makes HART's own angles itself; this one serves grouped-query heads (the text encoder) and tables from outside.
"""

from __future__ import annotations

import numpy as np

from .check import MAX_GRID_X, block_of_heads, ceil_div, expect, expect_rank, expect_true, lanes, pointer
from .kernel import C_TYPES, FLOATS, ITEM_BYTES, Buffer, Kernel, Launch
from .quantize import Array

OP = "rope_tables"
HEADS_AT_ONCE = 3  # of a row of a block, in the kernel


def rope_tables(
    qkv: Array, cos: Array, sin: Array, k_cache: Array, v_cache: Array, start: int, heads: int, gain: Array | None = None
) -> tuple[Array, Array, Array]:
    """NumPy truth: q [R, L, H, D] and the two new caches; the given ones are not changed."""
    rows, kv_heads, _, head_dim = k_cache.shape
    tokens = qkv.shape[0] // rows
    x = qkv.astype(np.float32).reshape(rows, tokens, -1, head_dim)
    q, k, v = np.split(x, (heads, heads + kv_heads), axis=2)
    if gain is not None:
        q = (_normalised(q, qkv) * gain.astype(np.float32)[:, None]).astype(qkv.dtype).astype(np.float32)
        k = _normalised(k, qkv)
    k_next, v_next = k_cache.copy(), v_cache.copy()
    k_next[:, :, start : start + tokens] = _rotate(k, cos, sin).transpose(0, 2, 1, 3).astype(qkv.dtype)
    v_next[:, :, start : start + tokens] = v.transpose(0, 2, 1, 3).astype(qkv.dtype)
    return _rotate(q, cos, sin).astype(qkv.dtype), k_next, v_next


def _normalised(x: Array, like: Array) -> Array:
    length = np.maximum(np.sqrt((x * x).sum(axis=-1, keepdims=True)), np.float32(1e-12))
    normalised: Array = (x / length).astype(like.dtype).astype(np.float32)
    return normalised


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    first, second = np.split(x, 2, axis=-1)
    c, s = (table.astype(np.float32)[:, :, None] for table in (cos, sin))
    rotated: Array = x * c + np.concatenate([second, first], axis=-1) * s
    return rotated


def kernel(dtype: str, n: int, normalise: bool) -> Kernel:
    return Kernel("rope_tables.cuh", f"hart::rope_tables<{C_TYPES[dtype]}, {n}, {str(normalise).lower()}>")


KERNELS = tuple(kernel(d, n, normalise) for d in FLOATS for n in (16 // ITEM_BYTES[d], 1) for normalise in (False, True))


def launch(
    qkv: Buffer, cos: Buffer, sin: Buffer, q: Buffer, k_cache: Buffer, v_cache: Buffer, start: int, gain: Buffer | None = None
) -> Launch:
    """The caches may have more rows than the run: the first R are written."""
    rows, tokens, heads, head_dim = expect_rank(OP, "q", q, "R L H D")
    one = (q.dtype,)
    cache_rows, kv_heads, capacity, _ = expect_rank(OP, "k_cache", k_cache, "R KV capacity D", one)
    expect(OP, "k_cache", k_cache, (cache_rows, kv_heads, capacity, head_dim), one)
    expect(OP, "v_cache", v_cache, k_cache.shape, one)
    expect(OP, "qkv", qkv, (rows * tokens, (heads + 2 * kv_heads) * head_dim), one)
    table_rows, _, _ = expect_rank(OP, "cos", cos, "R L D", one)
    for name, table in (("cos", cos), ("sin", sin)):
        expect(OP, name, table, (table_rows, tokens, head_dim), one)
    expect_true(OP, table_rows in (1, rows) and cache_rows >= rows, f"cos is {cos}, k_cache is {k_cache}; {rows} rows need 1 or {rows}.")
    expect_true(OP, head_dim % 2 == 0, f"q is {q}; the head size must be even.")
    expect_true(OP, 0 <= start <= capacity - tokens, f"start is {start}; {tokens} tokens do not fit a cache of {capacity} positions there.")
    if gain is not None:
        expect(OP, "gain", gain, (heads,), one)
    expect_true(OP, rows * tokens <= MAX_GRID_X, f"q is {q}, too large for one launch.")
    buffers = map(pointer, (qkv, cos, sin, gain, q, k_cache, v_cache))
    numbers = map(np.int32, (tokens, heads, kv_heads, head_dim, capacity, start, table_rows))
    n = lanes(head_dim // 2, q.dtype, (qkv, cos, sin, q, k_cache, v_cache))
    block = block_of_heads(head_dim // 2 // n, ceil_div(heads + 2 * kv_heads, HEADS_AT_ONCE), most=256)
    return Launch(kernel(q.dtype, n, gain is not None), (rows * tokens, 1, 1), block, 0, (*buffers, *numbers))
