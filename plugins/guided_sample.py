"""`guided_sample`: guidance, top-k, top-p, token and smooth codes of a whole batch, its noise made inside.

    g = (1+t)·c − t·u;  −∞ below the k-th largest (ties stay) and outside the nucleus of p
    token = argmax(g + gumbel);  codes = softmax((g·(1+ratio) + gumbel')/τ) @ codebook, or codebook[token]

conditional, unconditional [B, L, V] float32 (none at scale 0); seeds [B] uint64; codebook [V, Z] float32 → token [B, L]
int64, codes [B, L, Z] float32, channels last as `next_scale` takes them. Noise is that of `runtime/noise.py` for (seed,
purpose, scale), so tokens are those of the CPU path, but for ties of floats; or it is given, [B, L, V] float32, as a
recorded run's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import philox
from .check import MAX_GRID_X, MAX_GRID_YZ, expect, expect_rank, expect_shared, expect_true, pointer
from .kernel import Buffer, Kernel, Launch, Pointer
from .quantize import Array

OP = "guided_sample"
THREADS = 256
STATIC_SHARED = 1440
"""Bytes of shared memory that the kernel has beside the row: reductions and the mixture's parts."""


@dataclass(frozen=True)
class Sampling:
    """What one scale samples with: guidance weight t, top-k, top-p (0 or 1: off), ratio i/(S−1), scale number, smooth."""

    t: float
    top_k: int
    top_p: float
    ratio: float
    scale: int
    smooth: bool

    @property
    def temperature(self) -> float:
        return max(0.27 * (1 - 0.95 * self.ratio), 0.005)


def guided_sample(conditional: Array, unconditional: Array | None, seeds: Array, codebook: Array, s: Sampling) -> tuple[Array, Array]:
    """NumPy truth: token [B, L] int64, codes [B, L, Z] float32."""
    _, tokens, size = conditional.shape
    g = conditional.copy()
    if unconditional is not None and s.t != 0:
        g = np.float32(1 + s.t) * conditional - np.float32(s.t) * unconditional
    if s.top_k < size:
        g[g < np.sort(g, axis=-1)[..., size - s.top_k, None]] = -np.inf
    if 0 < s.top_p < 1:
        for row in g.reshape(-1, size):
            _keep_top_p(row, s.top_p)
    noises = [np.stack([philox.gumbel(int(seed), p, s.scale, tokens * size) for seed in seeds]) for p in (philox.TOKEN, philox.SMOOTH)]
    first, second = (noise.reshape(g.shape) for noise in noises)
    token = np.argmax(g + first, axis=-1)
    if not s.smooth:
        return token, codebook[token]
    return token, _softmax((g * np.float32(1 + s.ratio) + second) / np.float32(s.temperature)) @ codebook


def _keep_top_p(row: Array, p: float) -> None:
    """Drop the least likely while what is dropped has at most probability 1 − p; never the likeliest."""
    order = np.argsort(row, kind="stable")
    drop = np.cumsum(_softmax(row[order])) <= 1 - p
    row[order[:-1][drop[:-1]]] = -np.inf


def _softmax(x: Array) -> Array:
    e = np.exp(np.maximum(x - x.max(axis=-1, keepdims=True), np.float32(-80)))
    weights: Array = e / e.sum(axis=-1, keepdims=True)
    return weights


def kernel(smooth: bool) -> Kernel:
    return Kernel("guided_sample.cuh", f"hart::guided_sample<{str(smooth).lower()}>")


KERNELS = (kernel(True), kernel(False))


def launch(
    conditional: Buffer,
    unconditional: Buffer | None,
    seeds: Buffer,
    codebook: Buffer,
    token: Buffer,
    codes: Buffer,
    s: Sampling,
    noise: tuple[Buffer, Buffer] | None = None,
) -> Launch:
    """noise: Gumbel noise of the tokens and of the smooth mixture, in place of the seeds'."""
    batch, tokens, size = expect_rank(OP, "conditional", conditional, "B L V", ("float32",))
    if unconditional is not None:
        expect(OP, "unconditional", unconditional, (batch, tokens, size), ("float32",))
    expect_true(OP, unconditional is not None or s.t == 0, f"t is {s.t}; guidance needs unconditional logits.")
    expect(OP, "seeds", seeds, (batch,), ("uint64",))
    _, channels = expect_rank(OP, "codebook", codebook, "V Z", ("float32",))
    expect(OP, "codebook", codebook, (size, channels), ("float32",))
    expect(OP, "token", token, (batch, tokens), ("int64",))
    expect(OP, "codes", codes, (batch, tokens, channels), ("float32",))
    for buffer in noise or ():
        expect(OP, "noise", buffer, (batch, tokens, size), ("float32",))
    expect_true(OP, s.top_k >= 1 and s.scale >= 0, f"top_k is {s.top_k}, scale is {s.scale}; expected 1 and 0, or more.")
    expect_true(OP, 0 <= s.top_p <= 1, f"top_p is {s.top_p}; expected 0 to 1.")
    expect_true(OP, tokens <= MAX_GRID_X and batch <= MAX_GRID_YZ, f"conditional is {conditional}, too large for one launch.")
    expect_shared(OP, 6 * size + STATIC_SHARED, f"a codebook of {size}")
    arguments = (
        pointer(conditional),
        pointer(unconditional) if s.t != 0 else Pointer(0),
        *map(pointer, (seeds, codebook, *(noise or (None, None)), token, codes)),
        np.int32(size),
        np.int32(channels),
        np.float32(1 + s.t),
        np.float32(s.t),
        np.int32(min(s.top_k, size)),
        np.float32(1 - s.top_p if 0 < s.top_p < 1 else -1),
        np.float32(1 + s.ratio),
        np.float32(s.temperature),
        np.int32(s.scale),
    )
    return Launch(kernel(s.smooth), (tokens, batch, 1), (THREADS, 1, 1), 6 * size, arguments)
