"""`next_scale`: the codes' contribution to f_hat, and the next scale's input for both guidance halves.

    up = bicubic(h);  f_hat += (1 − r)·up + r·conv3x3(up);  x = word(area(f_hat)) + level

h [B, p², Z], f_hat [B, G², Z] (updated in place), φ weights [3, 3, Zin, Zout] (`pack_phi`) and bias [Z], word weights
[Z, C] and bias [C], level [C], all float32; x [2B, q², C] in the transformer's type, conditional rows first.

f_hat is channels last, where the runtime's engines have [B, Z, G, G]: sampling and residual diffusion make Z neighbours,
a warp reads whole cells, and the decoder's convolutions want channels last too.

Two launches. A pooled cell averages f_hat over a window that many blocks of the first launch write; one launch would need
a grid-wide wait, or recompute the convolution for every window. The bicubic pass is folded into the convolution's tiles
instead: 60 upsampled cells for 32 outputs, cheaper than writing and reading G²·Z.
"""

from __future__ import annotations

import numpy as np

from .check import MAX_GRID_X, MAX_GRID_YZ, ceil_div, expect, expect_rank, expect_shared, expect_true, pointer
from .kernel import C_TYPES, FLOATS, Buffer, Kernel, Launch
from .quantize import Array

OP = "next_scale"
_SOURCE = "next_scale.cuh"
_THREADS, _TILE_WIDTH, _TILE_HEIGHT = 256, 8, 4
_MANY = 64  # tokens from which a block takes eight of them


def pack_phi(weight: Array) -> Array:
    """A convolution's weight [Zout, Zin, 3, 3] → [3, 3, Zin, Zout], as the kernel reads it."""
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0))


def next_scale(
    h: Array,
    f_hat: Array,
    phi: tuple[Array, Array],
    ratio: float,
    word: tuple[Array, Array],
    level: Array,
    side: int,
    dtype: str = "float32",
) -> tuple[Array, Array]:
    """NumPy truth in float64: new f_hat [B, G², Z] float32 and x [2B, side², C]; phi and word are (weight, bias)."""
    (batch, cells, channels), grid = f_hat.shape, round(f_hat.shape[1] ** 0.5)
    source = round(h.shape[1] ** 0.5)
    up_matrix, pool = _bicubic_matrix(source, grid), _area_matrix(grid, side)
    up = np.einsum("ir,jc,brcz->bijz", up_matrix, up_matrix, h.astype(np.float64).reshape(batch, source, source, channels))
    padded = np.pad(up, ((0, 0), (1, 1), (1, 1), (0, 0)))
    mixed = sum(padded[:, dy : dy + grid, dx : dx + grid] @ phi[0][dy, dx].astype(np.float64) for dy in range(3) for dx in range(3))
    total = f_hat.astype(np.float64) + ((1 - ratio) * up + ratio * (mixed + phi[1])).reshape(batch, cells, channels)
    pooled = np.einsum("ir,jc,brcz->bijz", pool, pool, total.reshape(batch, grid, grid, channels)).reshape(batch, side * side, channels)
    x = (pooled @ word[0].astype(np.float64) + word[1] + level).astype(dtype)
    return total.astype(np.float32), np.concatenate([x, x])


def _bicubic_matrix(source: int, target: int) -> Array:
    """Half-pixel centres, border repeated, a = −0.75: [target, source]."""
    matrix, a = np.zeros((target, source)), -0.75
    for i in range(target):
        centre = (i + 0.5) * source / target - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            x = abs(centre - tap)
            near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[i, min(max(tap, 0), source - 1)] += near if x <= 1 else far if x < 2 else 0
    return matrix


def _area_matrix(source: int, target: int) -> Array:
    """Averages over floor(i·s/t) … ceil((i+1)·s/t): [target, source]."""
    matrix = np.zeros((target, source))
    for i in range(target):
        start, stop = i * source // target, -(-(i + 1) * source // target)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


UPSAMPLE_PHI = Kernel(_SOURCE, "hart::upsample_phi")


def pool_kernel(dtype: str, tokens: int) -> Kernel:
    """`tokens` per block: 1 or 8."""
    return Kernel(_SOURCE, f"hart::pool_embed<{C_TYPES[dtype]}, {tokens}>")


KERNELS = (UPSAMPLE_PHI, *(pool_kernel(d, tokens) for d in FLOATS for tokens in (1, 8)))


def launches(
    h: Buffer, f_hat: Buffer, phi: tuple[Buffer, Buffer], ratio: float, word: tuple[Buffer, Buffer], level: Buffer, x: Buffer
) -> tuple[Launch, Launch]:
    """To be run in this order; f_hat is updated in place."""
    batch, source_cells, channels = expect_rank(OP, "h", h, "B p² Z", ("float32",))
    _, cells, _ = expect_rank(OP, "f_hat", f_hat, "B G² Z", ("float32",))
    expect(OP, "f_hat", f_hat, (batch, cells, channels), ("float32",))
    _, tokens, width = expect_rank(OP, "x", x, "2B q² C")
    expect(OP, "x", x, (2 * batch, tokens, width), FLOATS)
    source, grid, side = (_side(name, n) for name, n in (("h", source_cells), ("f_hat", cells), ("x", tokens)))
    expect_true(OP, source <= grid and side <= grid, f"sides {source} and {side}; expected at most the grid's {grid}.")
    expect(OP, "phi weight", phi[0], (3, 3, channels, channels), ("float32",))
    expect(OP, "phi bias", phi[1], (channels,), ("float32",))
    expect(OP, "word weight", word[0], (channels, width), ("float32",))
    expect(OP, "word bias", word[1], (width,), ("float32",))
    expect(OP, "level", level, (width,), ("float32",))
    expect_true(OP, 0 <= ratio <= 1, f"ratio is {ratio}; expected 0 to 1.")
    tiles, columns = ceil_div(grid, _TILE_WIDTH) * ceil_div(grid, _TILE_HEIGHT), ceil_div(width, _THREADS)
    most = max(batch, columns)
    expect_true(OP, most <= MAX_GRID_YZ and cells * channels * 4 <= MAX_GRID_X, f"f_hat is {f_hat}, x is {x}: too large for one launch.")
    tile = expect_shared(OP, (_TILE_WIDTH + 2) * (_TILE_HEIGHT + 2) * channels * 4, f"a tile of {channels} channels")
    shape = (np.int32(grid), np.int32(channels))
    up = (*map(pointer, (h, *phi, f_hat)), np.int32(source), *shape, np.float32(ratio))
    per_block = 8 if tokens >= _MANY else 1
    pool = (*map(pointer, (f_hat, *word, level, x)), np.int32(side), *shape, np.int32(width))
    block = (_THREADS, 1, 1)
    return (
        Launch(UPSAMPLE_PHI, (tiles, ceil_div(channels, 32), batch), block, tile, up),
        Launch(pool_kernel(x.dtype, per_block), (ceil_div(tokens, per_block), columns, batch), block, 32 * channels, pool),
    )


def _side(name: str, cells: int) -> int:
    side = round(cells**0.5)
    expect_true(OP, side * side == cells, f"{name} has {cells} cells; expected a square number.")
    return side
