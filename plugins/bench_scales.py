"""Benchmark cases of the scale loop at its last scale: transformer, sampling, the step between scales."""

from __future__ import annotations

import numpy as np

from . import (
    attention,
    cast,
    context_entry,
    flash_attention,
    guided_sample,
    next_scale,
    noise,
    philox,
    rms_norm,
    rope_cache,
    rope_tables,
    split_rotary,
    swiglu,
)
from .bench_case import CODEBOOK, EPS, HEAD_DIM, HEADS, HIDDEN, LATENT, PATCH_NUMS, TEXT, WIDTH, Case, Tensors, by
from .kernel import FP8, Buffer, Launch, minimum_of

ATTENTION_SCALE = 0.25 / HEAD_DIM**0.5
PRODUCTS = "arithmetic: products in float32"
COUNTING = "counting: the k-th largest is found by bisection; noise takes float64 logarithms"
NOISE = "arithmetic: float64 logarithms and cosines"


def transformer(dtype: str, size: int) -> tuple[Case, ...]:
    """Cases with activations of a type, for pictures of size × size pixels, guided: two rows of tokens."""
    tokens = PATCH_NUMS[size][-1] ** 2
    rows = 2 * tokens
    return (
        Case("rms_norm", f"{by(rows, WIDTH)}, residual", dtype, lambda t: (_rms_norm(t, dtype, rows, dtype),)),
        Case("rms_norm", f"{by(rows, WIDTH)}, residual, INT8 out", dtype, lambda t: (_rms_norm(t, dtype, rows, "int8"),)),
        Case("rms_norm", f"{by(rows, WIDTH)}, modulated", dtype, lambda t: (_head_norm(t, dtype, rows),)),
        Case("rope_cache", f"{by(rows, 3 * WIDTH)}, {HEADS} heads", dtype, lambda t: (_rope_cache(t, dtype, size, False),)),
        Case("rope_cache", f"{by(rows, 3 * WIDTH)}, normalised", dtype, lambda t: (_rope_cache(t, dtype, size, True),)),
        Case("split_rotary", f"{by(rows, 3 * WIDTH)}, {HEADS} heads", dtype, lambda t: (_split_rotary(t, dtype, tokens),)),
        Case("rope_tables", f"{by(rows, 3 * WIDTH)}, {HEADS} heads", dtype, lambda t: (_rope_tables(t, dtype, size),)),
        Case("attention", f"{by(rows, WIDTH)} on {capacity(size)}", dtype, lambda t: (_attention(t, dtype, size),), PRODUCTS),
        Case("swiglu", f"{by(rows, 2 * HIDDEN)}, packed", dtype, lambda t: (_swiglu(t, dtype, rows),)),
        Case("next_scale", f"{PATCH_NUMS[size][-2]}² → {tokens}", dtype, lambda t: _next_scale(t, dtype, size), PRODUCTS),
        Case("context_entry", by(TEXT, WIDTH), dtype, lambda t: (_context_entry(t, dtype),)),
    )


def transformer_hopper(size: int) -> tuple[Case, ...]:
    """Cases that only SM90 runs."""
    detail, only = f"{by(2 * PATCH_NUMS[size][-1] ** 2, WIDTH)} on {capacity(size)}", flash_attention.ARCHITECTURE
    return (Case("flash_attention", detail, "float16", lambda t: (_flash_attention(t, size),), PRODUCTS, only, only),)


def transformer_fp8(size: int) -> tuple[Case, ...]:
    """Cases that write what FP8 products read: of the norm, of the attention's result and of the MLP."""
    rows, least = 2 * PATCH_NUMS[size][-1] ** 2, minimum_of(FP8)
    return (
        Case("rms_norm", f"{by(rows, WIDTH)}, FP8 out", "float16", lambda t: (_norm_fp8(t, rows),), minimum=least),
        Case("cast", f"{by(rows, WIDTH)} to FP8", "float16", lambda t: (_cast_fp8(t, rows),), minimum=least),
        Case("swiglu", f"{by(rows, 2 * HIDDEN)}, FP8 out", "float16", lambda t: (_swiglu(t, "float16", rows, FP8),), minimum=least),
    )


def sampling(size: int) -> tuple[Case, ...]:
    """Cases in float32, whatever the activations are."""
    tokens, last = PATCH_NUMS[size][-1] ** 2, len(PATCH_NUMS[size]) - 1
    return (
        Case("guided_sample", f"{by(tokens, CODEBOOK)}, top 300", "float32", lambda t: (_guided_sample(t, tokens, last),), COUNTING),
        Case("noise", f"{by(tokens, LATENT)}, normal", "float32", lambda t: (_noise(t, tokens),), NOISE),
    )


def capacity(size: int) -> int:
    """Positions of the cache: text and all scales but the first, which is the text's last token."""
    return TEXT + sum(p**2 for p in PATCH_NUMS[size][1:])


def _rms_norm(t: Tensors, dtype: str, rows: int, out: str) -> Launch:
    shape = (rows, WIDTH)
    x, residual, weight, y = t.read(shape, dtype), t.update(shape, dtype), t.read((WIDTH,), dtype), t.write(shape, out)
    return rms_norm.launch(x, weight, y, EPS, (residual, residual), scale=0.02 if out == "int8" else None)


def _norm_fp8(t: Tensors, rows: int) -> Launch:
    x, weight, y = t.read((rows, WIDTH), "float16"), t.read((WIDTH,), "float16"), t.write((rows, WIDTH), FP8)
    return rms_norm.launch(x, weight, y, EPS, scale=0.02)


def _cast_fp8(t: Tensors, rows: int) -> Launch:
    return cast.launch(t.read((rows, WIDTH), "float16"), t.write((rows, WIDTH), FP8), 0.02)


def _head_norm(t: Tensors, dtype: str, rows: int) -> Launch:
    x, weight, y = t.read((rows, WIDTH), dtype), t.read((WIDTH,), dtype), t.write((rows, WIDTH), dtype)
    return rms_norm.launch(x, weight, y, EPS, modulation=(t.read((2, WIDTH), dtype), t.read((2, WIDTH), dtype)))


def _projected(t: Tensors, dtype: str, size: int) -> tuple[Buffer, Buffer, Buffer, Buffer]:
    """qkv, q, and the caches, of which the last scale's tokens are written."""
    tokens = PATCH_NUMS[size][-1] ** 2
    cache = (2, HEADS, capacity(size), HEAD_DIM)
    written = tokens / capacity(size)
    qkv, q = t.read((2 * tokens, 3 * WIDTH), dtype), t.write((2, tokens, HEADS, HEAD_DIM), dtype)
    return qkv, q, t.write(cache, dtype, written), t.write(cache, dtype, written)


def _rope_cache(t: Tensors, dtype: str, size: int, normalised: bool) -> Launch:
    side = PATCH_NUMS[size][-1]
    qkv, q, k_cache, v_cache = _projected(t, dtype, size)
    biases, f = (t.read((WIDTH,), dtype), t.read((WIDTH,), dtype)), rope_cache.frequencies(HEAD_DIM, image=True)
    angles = t.read(f.shape, "float32", f), t.read((2,), "int64", np.array([20, 0]))
    gain = t.read((HEADS,), dtype) if normalised else None
    return rope_cache.launch(qkv, *biases, *angles, q, k_cache, v_cache, capacity(size) - side**2, side, side, gain)


def _rope_tables(t: Tensors, dtype: str, size: int) -> Launch:
    tokens = PATCH_NUMS[size][-1] ** 2
    qkv, q, k_cache, v_cache = _projected(t, dtype, size)
    cos, sin = (t.read((2, tokens, HEAD_DIM), dtype) for _ in range(2))
    return rope_tables.launch(qkv, cos, sin, q, k_cache, v_cache, capacity(size) - tokens)


def _attended(t: Tensors, dtype: str, size: int) -> tuple[Buffer, Buffer, Buffer, Buffer]:
    """Queries of the last scale, both caches and the result."""
    q, cache = (2, PATCH_NUMS[size][-1] ** 2, HEADS, HEAD_DIM), (2, HEADS, capacity(size), HEAD_DIM)
    return t.read(q, dtype), t.read(cache, dtype), t.read(cache, dtype), t.write(q, dtype)


def _attention(t: Tensors, dtype: str, size: int) -> Launch:
    return attention.launch(*_attended(t, dtype, size), capacity(size), ATTENTION_SCALE)


def _flash_attention(t: Tensors, size: int) -> Launch:
    return flash_attention.launch(*_attended(t, flash_attention.DTYPE, size), capacity(size), ATTENTION_SCALE)


def _split_rotary(t: Tensors, dtype: str, tokens: int) -> Launch:
    cos, sin = (t.read((2, 1, tokens, HEAD_DIM), dtype) for _ in range(2))
    q, k, v = (t.write((2, HEADS, tokens, HEAD_DIM), dtype) for _ in range(3))
    return split_rotary.launch(t.read((2 * tokens, 3 * WIDTH), dtype), cos, sin, q, k, v)


def _swiglu(t: Tensors, dtype: str, rows: int, out: str = "") -> Launch:
    return swiglu.launch(t.read((rows, 2 * HIDDEN), dtype), t.write((rows, HIDDEN), out or dtype), scale=0.02 if out else None)


def _next_scale(t: Tensors, dtype: str, size: int) -> tuple[Launch, ...]:
    source, grid = PATCH_NUMS[size][-2:]
    h, f_hat = t.read((1, source**2, LATENT), "float32"), t.update((1, grid**2, LATENT), "float32")
    phi = t.read((3, 3, LATENT, LATENT), "float32"), t.read((LATENT,), "float32")
    word = t.read((LATENT, WIDTH), "float32"), t.read((WIDTH,), "float32")
    return next_scale.launches(h, f_hat, phi, 0.5, word, t.read((WIDTH,), "float32"), t.write((2, grid**2, WIDTH), dtype))


def _context_entry(t: Tensors, dtype: str) -> Launch:
    e, level, pooled = t.update((1, TEXT, WIDTH), dtype), t.read((WIDTH,), dtype), t.write((1, WIDTH), dtype)
    return context_entry.launch(e, level, e, pooled)


def _guided_sample(t: Tensors, tokens: int, scale: int) -> Launch:
    shape, random = (1, tokens, CODEBOOK), np.random.default_rng(0)
    logits = [t.read(shape, "float32", 3 * random.standard_normal(shape, np.float32)) for _ in range(2)]
    seeds, codebook = t.read((1,), "uint64"), t.read((CODEBOOK, LATENT), "float32")
    token, codes = t.write((1, tokens), "int64"), t.write((1, tokens, LATENT), "float32")
    ratio = (scale - 1) / scale
    s = guided_sample.Sampling(t=4.5 * ratio, top_k=300, top_p=0.0, ratio=ratio, scale=scale, smooth=True)
    return guided_sample.launch(logits[0], logits[1], seeds, codebook, token, codes, s)


def _noise(t: Tensors, tokens: int) -> Launch:
    return noise.launch(t.read((1,), "uint64"), t.write((1, tokens, LATENT), "float32"), 0, philox.DIFFUSION_INIT, True)
