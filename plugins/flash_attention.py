"""`flash_attention`: `y = softmax(scale · q · kᵀ) · v` over the valid part of a cache, on Hopper's tensor cores.

q, y [R, L, H, 64]; k, v [≥ R, H, capacity, 64] with `length` valid positions, all float16. For H100 and H200 (SM90) alone: its
products are wgmma instructions. Takes 0.70 to 0.83 of the time of cuDNN's attention where there are 700 queries or more
(docs/measurements.md).
"""

from __future__ import annotations

import numpy as np

from . import attention
from .check import MAX_GRID_YZ, ceil_div, expect, expect_rank, expect_true, pointer
from .kernel import Buffer, Kernel, Launch
from .quantize import Array

OP = "flash_attention"
ARCHITECTURE, HEAD_DIM, DTYPE = 90, 64, "float16"
_GROUPS, _ROWS, _KEYS, _STAGES, _GROUP = 3, 64, 128, 4, 128  # as in flash_tiles.cuh
SHARED = (_GROUPS * _ROWS + 2 * _STAGES * _KEYS) * 2 * HEAD_DIM + 4 * _STAGES * 8 + 1024

KERNELS = (Kernel("flash_attention.cuh", "hart::flash_attention", ARCHITECTURE, ARCHITECTURE),)


def flash_attention(q: Array, k: Array, v: Array, length: int, scale: float) -> Array:
    """NumPy truth, in float64 inside: y [R, L, H, 64]. It is what `attention` computes."""
    return attention.attention(q, k, v, length, scale)


def launch(q: Buffer, k: Buffer, v: Buffer, y: Buffer, length: int, scale: float) -> Launch:
    """The caches may have more rows than q: the first R are read. scale > 0. Addresses are multiples of 16."""
    rows, tokens, heads, head_dim = expect_rank(OP, "q", q, "R L H D", (DTYPE,))
    cache_rows, _, capacity, _ = expect_rank(OP, "k", k, "R H capacity D", (DTYPE,))
    expect_true(OP, head_dim == HEAD_DIM, f"q is {q}; expected heads of {HEAD_DIM}.")
    expect(OP, "k", k, (cache_rows, heads, capacity, head_dim), (DTYPE,))
    expect(OP, "v", v, k.shape, (DTYPE,))
    expect(OP, "y", y, q.shape, (DTYPE,))
    expect_true(OP, cache_rows >= rows, f"k is {k}; {q} needs as many rows.")
    expect_true(OP, 1 <= length <= capacity, f"length is {length}; expected 1 to {capacity}.")
    expect_true(OP, scale > 0, f"scale is {scale}; expected a positive number.")
    expect_true(OP, all(b.address % 16 == 0 for b in (q, k, v, y)), "an address is no multiple of 16.")
    expect_true(OP, rows <= MAX_GRID_YZ and heads <= MAX_GRID_YZ, f"q is {q}, too large for one launch.")
    numbers = (*map(np.int32, (tokens, heads, capacity, length)), np.float32(scale))
    grid = (ceil_div(tokens, _GROUPS * _ROWS), heads, rows)
    return Launch(KERNELS[0], grid, ((_GROUPS + 1) * _GROUP, 1, 1), SHARED, (*map(pointer, (q, k, v, y)), *numbers))
