"""`hart::CachedAttention`: write new keys and values into the cache, attend to everything written so far.

    k_next[r, :, position[r] : length[r]] = k[r];  likewise v
    y = softmax(scale · q · k_next[:, :, :n]ᵀ) · v_next[:, :, :n],  n = length[0]

All rows share one position and one length; the op takes one per row because TensorScatter does. The body reads only
the valid prefix: on the CPU, Attention with `nonpad_kv_seqlen` computes over the whole buffer instead and is slower
(figures: docs/measurements.md). Bound to one buffer in and out, TensorScatter writes in place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

CACHED_ATTENTION = """
<domain: "hart", opset_import: ["" : 24]>
CachedAttention <scale> (q, k, v, k_cache, v_cache, position, length) => (y, k_next, v_next)
{
    k_next = TensorScatter <axis = 2> (k_cache, k, position)
    v_next = TensorScatter <axis = 2> (v_cache, v, position)
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    valid = Slice (length, zero, one)
    k_valid = Slice (k_next, zero, valid, two)
    v_valid = Slice (v_next, zero, valid, two)
    y = Attention <scale: float = @scale> (q, k_valid, v_valid)
}
"""


def cached_attention(
    q: Array, k: Array, v: Array, k_cache: Array, v_cache: Array, position: Array, length: Array, scale: float
) -> tuple[Array, Array, Array]:
    """NumPy truth, in float64 inside.

    Args:
        q, k, v: [R, H, L, D].
        k_cache, v_cache: [R, H, capacity, D], not changed.
        position, length: [R] int64, first new position and number of valid positions.
        scale: factor of the scores.

    Returns y [R, H, L, D] and the two new caches, in the input's dtype.
    """
    k_next, v_next = k_cache.copy(), v_cache.copy()
    for row, (start, stop) in enumerate(zip(position, length, strict=True)):
        k_next[row, :, start:stop], v_next[row, :, start:stop] = k[row], v[row]
    n = int(length[0])
    scores = scale * q.astype(np.float64) @ k_next[:, :, :n].swapaxes(2, 3).astype(np.float64)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return (weights @ v_next[:, :, :n].astype(np.float64)).astype(q.dtype), k_next, v_next
