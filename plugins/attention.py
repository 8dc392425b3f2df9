"""`attention`: `y = softmax(scale · q · kᵀ) · v` over the valid part of a cache, where cuDNN does not serve.

q, y [R, L, H, D]; k, v [R, KV, capacity, D] with `length` valid positions; grouped-query heads. With a mask it is a text
encoder's attention: causal (the queries are the last L positions), keys with mask 0 left out, and a query that nothing is
left for attends to everything. mask [R, L] int64; first [R] int64: the first position that counts (`first_positions`).

cuDNN's attention has no float32 and is faster in everything it has, `flash_attention` runs on Hopper alone; this kernel keeps
scores out of memory too, and is plain: no tensor cores.
"""

from __future__ import annotations

import numpy as np

from .check import MAX_GRID_YZ, ceil_div, expect, expect_rank, expect_shared, expect_true, pointer
from .kernel import C_TYPES, FLOATS, Buffer, Kernel, Launch
from .quantize import Array

OP = "attention"
_ROWS, _KEYS, _SHARE = 32, 32, 8
_COLUMNS = (4, 8, 16, 20)  # output columns per thread: head sizes up to 32, 64, 128, 160


def attention(q: Array, k: Array, v: Array, length: int, scale: float, mask: Array | None = None, first: Array | None = None) -> Array:
    """NumPy truth, in float64 inside: y [R, L, H, D]."""
    tokens, group = q.shape[1], q.shape[2] // k.shape[1]
    keys, values = (np.repeat(x[:, :, :length].astype(np.float64), group, axis=1) for x in (k, v))
    scores = scale * q.astype(np.float64).transpose(0, 2, 1, 3) @ keys.swapaxes(2, 3)
    if mask is not None and first is not None:
        scores = np.where(_allowed(mask, first, tokens, length)[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.ascontiguousarray((weights @ values).transpose(0, 2, 1, 3).astype(q.dtype))


def _allowed(mask: Array, first: Array, tokens: int, length: int) -> Array:
    """What each query may attend to, [R, L, length] bool."""
    before = length - tokens
    keys = np.concatenate([np.ones((mask.shape[0], before), bool), mask != 0], axis=1)[:, None]
    place, key = np.arange(before, length)[:, None], np.arange(length)
    allowed: Array = (keys & (key <= place)) | (place < first[:, None, None])
    return allowed


def first_positions(mask: Array, before: int) -> Array:
    """First position that counts, [R] int64: 0 with keys before the queries, else the first with mask ≠ 0, L if none."""
    if before:
        return np.zeros(mask.shape[0], np.int64)
    return np.where((mask != 0).any(axis=1), (mask != 0).argmax(axis=1), mask.shape[1]).astype(np.int64)


def kernel(dtype: str, columns: int) -> Kernel:
    return Kernel("attention.cuh", f"hart::attention<{C_TYPES[dtype]}, {columns}>")


KERNELS = tuple(kernel(d, columns) for d in FLOATS for columns in _COLUMNS)


def launch(
    q: Buffer, k: Buffer, v: Buffer, y: Buffer, length: int, scale: float, mask: Buffer | None = None, first: Buffer | None = None
) -> Launch:
    """The caches may have more rows than q: the first R are read."""
    rows, tokens, heads, head_dim = expect_rank(OP, "q", q, "R L H D")
    cache_rows, kv_heads, capacity, _ = expect_rank(OP, "k", k, "R KV capacity D", (q.dtype,))
    expect(OP, "k", k, (cache_rows, kv_heads, capacity, head_dim), (q.dtype,))
    expect(OP, "v", v, k.shape, (q.dtype,))
    expect(OP, "y", y, q.shape, (q.dtype,))
    expect_true(OP, cache_rows >= rows and heads % kv_heads == 0, f"k is {k}; {q} needs as many rows and a divisor of its heads.")
    expect_true(OP, tokens <= length <= capacity, f"length is {length}; expected {tokens} to {capacity}.")
    expect_true(OP, (mask is None) == (first is None), "mask and first go together; expected both or none.")
    if mask is not None and first is not None:
        expect(OP, "mask", mask, (rows, tokens), ("int64",))
        expect(OP, "first", first, (rows,), ("int64",))
    expect_true(OP, head_dim <= _SHARE * _COLUMNS[-1], f"q is {q}; expected a head size of at most {_SHARE * _COLUMNS[-1]}.")
    expect_true(OP, rows <= MAX_GRID_YZ and heads <= MAX_GRID_YZ, f"q is {q}, too large for one launch.")
    shared = expect_shared(OP, 4 * ((_ROWS + _KEYS) * (head_dim + 1) + _ROWS * (_KEYS + 1)), "q")
    columns = min(c for c in _COLUMNS if _SHARE * c >= head_dim)
    numbers = (*map(np.int32, (tokens, heads, kv_heads, head_dim, capacity, length)), np.float32(scale))
    grid = (ceil_div(tokens, _ROWS), heads, rows)
    return Launch(kernel(q.dtype, columns), grid, (_ROWS * _SHARE, 1, 1), shared, (*map(pointer, (q, k, v, y, mask, first)), *numbers))
