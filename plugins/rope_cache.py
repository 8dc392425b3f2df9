"""`rope_cache`: biases, HART's rotary embedding, and k and v written straight into the caches.

    out1 = x1·cos a − x2·sin a,  out2 = x2·cos b + x1·sin b      for q + q_bias and for k;  v + v_bias as it is

Text: a = b = position·f. Image tokens: a from the token's row, b from its column (r/p·G + offset): not a rotation.
qkv [R·L, 3·H·D]; q_bias, v_bias [H·D]; positions int64, [R, L] for text, [R] offsets for image tokens; frequency
float32, from `frequencies`, so that the angles are the runtime's to the last bit. Everything is float32 inside and
rounded once.

With gain [H], exp(min(scale_mul, ln 100)) of a model with attn_l2_norm, heads are normalised before they are rotated:
q/‖q‖·gain and k/‖k‖, norms of at least 1e-12.

q comes out as [R, L, H, D]: FlashAttention's own layout, cuDNN takes any strides, writing it is one contiguous run per
token, and the attention's output in the same layout is the next product's input without a transposition. The caches are
[R, H, capacity, D], as in `runtime/kv_cache.py`.
"""

from __future__ import annotations

import numpy as np

from .check import MAX_GRID_X, block_of_heads, expect, expect_rank, expect_shared, expect_true, lanes, pointer
from .kernel import C_TYPES, FLOATS, ITEM_BYTES, Buffer, Kernel, Launch
from .quantize import Array

OP = "rope_cache"
LEAST_NORM = np.float32(1e-12)


def frequencies(head_dim: int, image: bool) -> Array:
    """`1/10000^(4j/D)`, j < D/4, for image tokens; `1/10000^(2j/D)`, j < D/2, for text: float32."""
    exponent = 4 if image else 2
    f: Array = (1 / 10000.0 ** (exponent * np.arange(head_dim // exponent) / head_dim)).astype(np.float32)
    return f


def rope_cache(
    qkv: Array,
    q_bias: Array,
    v_bias: Array,
    frequency: Array,
    positions: Array,
    k_cache: Array,
    v_cache: Array,
    start: int,
    side: int = 0,
    grid: int = 0,
    gain: Array | None = None,
) -> tuple[Array, Array, Array]:
    """NumPy truth: q [R, L, H, D] and the two new caches; the given ones are not changed. side 0: text."""
    rows, heads, _, head_dim = k_cache.shape
    tokens = qkv.shape[0] // rows
    q, k, v = qkv.astype(np.float32).reshape(rows, tokens, 3, heads, head_dim).transpose(2, 0, 1, 3, 4)
    q, v = (x + bias.astype(np.float32).reshape(heads, head_dim) for x, bias in ((q, q_bias), (v, v_bias)))
    if gain is not None:
        q, k = _normalized(q) * gain.astype(np.float32)[:, None], _normalized(k)
    a, b = (angle[:, :, None] for angle in _angles(frequency, positions, tokens, side, grid))  # [R, L, 1, D/2]
    k_next, v_next = k_cache.copy(), v_cache.copy()
    k_next[:, :, start : start + tokens] = _rotate(k, a, b).transpose(0, 2, 1, 3).astype(qkv.dtype)
    v_next[:, :, start : start + tokens] = v.transpose(0, 2, 1, 3).astype(qkv.dtype)
    return _rotate(q, a, b).astype(qkv.dtype), k_next, v_next


def _angles(frequency: Array, positions: Array, tokens: int, side: int, grid: int) -> tuple[Array, Array]:
    """Row and column angles, each [R, L, D/2] float32."""
    if side == 0:
        angle = positions[..., None].astype(np.float32) * frequency
        return angle, angle
    index = np.arange(tokens)
    places = (axis.astype(np.float32) / np.float32(side) * np.float32(grid) for axis in (index // side, index % side))
    row, col = (np.tile((place + positions[:, None].astype(np.float32))[..., None] * frequency, 2) for place in places)
    return row, col


def _normalized(x: Array) -> Array:
    unit: Array = x / np.maximum(np.sqrt(np.sum(x * x, axis=-1, keepdims=True)), LEAST_NORM)
    return unit


def _rotate(x: Array, a: Array, b: Array) -> Array:
    x1, x2 = np.split(x, 2, axis=-1)
    return np.concatenate([x1 * np.cos(a) - x2 * np.sin(a), x2 * np.cos(b) + x1 * np.sin(b)], axis=-1)


def kernel(dtype: str, n: int, normalise: bool) -> Kernel:
    return Kernel("rope_cache.cuh", f"hart::rope_cache<{C_TYPES[dtype]}, {n}, {str(normalise).lower()}>")


KERNELS = tuple(kernel(d, n, normalise) for d in FLOATS for n in (16 // ITEM_BYTES[d], 1) for normalise in (False, True))


def launch(
    qkv: Buffer,
    q_bias: Buffer,
    v_bias: Buffer,
    frequency: Buffer,
    positions: Buffer,
    q: Buffer,
    k_cache: Buffer,
    v_cache: Buffer,
    start: int,
    side: int = 0,
    grid: int = 0,
    gain: Buffer | None = None,
) -> Launch:
    """The caches may have more rows than the run: the first R are written."""
    rows, tokens, heads, head_dim = expect_rank(OP, "q", q, "R L H D")
    width, one = heads * head_dim, (q.dtype,)
    cache_rows, _, capacity, _ = expect_rank(OP, "k_cache", k_cache, "R H capacity D", one)
    expect_true(OP, head_dim % 4 == 0, f"q is {q}; the head size must be a multiple of 4.")
    expect(OP, "qkv", qkv, (rows * tokens, 3 * width), one)
    for name, bias in (("q_bias", q_bias), ("v_bias", v_bias)):
        expect(OP, name, bias, (width,), one)
    expect_true(OP, cache_rows >= rows, f"k_cache is {k_cache}; expected {rows} rows or more.")
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        expect(OP, name, cache, (cache_rows, heads, capacity, head_dim), one)
    expect_true(OP, 0 <= start <= capacity - tokens, f"start is {start}; {tokens} tokens do not fit a cache of {capacity} positions there.")
    expect_true(OP, side == 0 or side * side == tokens, f"side is {side}; {tokens} tokens need its square, or 0 for text.")
    expect_true(OP, side == 0 or grid >= side, f"grid is {grid}; expected {side} or more.")
    expect(OP, "frequency", frequency, (head_dim // (4 if side else 2),), ("float32",))
    expect(OP, "positions", positions, (rows,) if side else (rows, tokens), ("int64",))
    if gain is not None:
        expect(OP, "gain", gain, (heads,), one)
    expect_true(OP, rows * tokens <= MAX_GRID_X, f"q is {q}, too large for one launch.")
    n = lanes(head_dim // 2, q.dtype, (qkv, q_bias, v_bias, q, k_cache, v_cache))
    buffers = (qkv, q_bias, v_bias, frequency, positions, gain, q, k_cache, v_cache)
    numbers = (tokens, heads, head_dim, side, grid, capacity, start)
    arguments = (*map(pointer, buffers), *map(np.int32, numbers))
    block = block_of_heads(head_dim // 2 // n, heads, most=256)
    shared = expect_shared(OP, 4 * 2 * head_dim, "q")
    return Launch(kernel(q.dtype, n, gain is not None), (rows * tokens, 1, 1), block, shared, arguments)
