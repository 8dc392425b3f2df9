"""Benchmark cases behind the scale loop: residual diffusion and decoder.

The group norm counts two reads of its input: its statistics need all of a tensor that no cache holds.
"""

from __future__ import annotations

import numpy as np

from . import (
    add_bias,
    add_silu,
    cast,
    diffusion_update,
    gate_residual,
    group_norm_silu,
    join_phases,
    latent_sum,
    layer_norm_modulate,
    softmax_rows,
    take_rows,
    to_uint8,
    transpose,
)
from .bench_case import CHANNELS, CODEBOOK, DIFFUSION, EPS, LATENT, PATCH_NUMS, WIDTH, Case, Shape, Tensors, by
from .bench_scales import NOISE
from .kernel import FP8, Launch, minimum_of


def diffusion(dtype: str, size: int) -> tuple[Case, ...]:
    """Cases with activations of a type, for pictures of size × size pixels, guided: two rows of tokens."""
    tokens = PATCH_NUMS[size][-1] ** 2
    rows = 2 * tokens
    return (
        Case("take_rows", f"{by(rows, WIDTH)} of {CODEBOOK}", dtype, lambda t: (_take_rows(t, dtype, tokens),)),
        Case("add_silu", f"{by(rows, DIFFUSION)}, row", dtype, lambda t: (_add_silu(t, dtype, rows),)),
        Case("layer_norm_modulate", f"{by(rows, DIFFUSION)}, affine", dtype, lambda t: (_layer_norm(t, dtype, rows),)),
        Case("gate_residual", by(rows, DIFFUSION), dtype, lambda t: (_gate_residual(t, dtype, rows),)),
        Case("diffusion_update", f"{by(tokens, LATENT)}, from seeds", dtype, lambda t: (_diffusion_update(t, dtype, tokens),), NOISE),
    )


def diffusion_fp8(size: int) -> tuple[Case, ...]:
    """Cases that write what the MLP's FP8 products read."""
    rows, least = 2 * PATCH_NUMS[size][-1] ** 2, minimum_of(FP8)
    return (
        Case("add_silu", f"{by(rows, DIFFUSION)}, FP8 out", "float16", lambda t: (_add_silu(t, "float16", rows, FP8),), minimum=least),
        Case(
            "layer_norm_modulate",
            f"{by(rows, DIFFUSION)}, affine, FP8 out",
            "float16",
            lambda t: (_layer_norm(t, "float16", rows, FP8),),
            minimum=least,
        ),
    )


def decoder(dtype: str, size: int) -> tuple[Case, ...]:
    """Cases with activations of a type, batch 1."""
    large, half = (1, size, size, CHANNELS), (1, size // 2, size // 2, 2 * CHANNELS)
    cells = PATCH_NUMS[size][-1] ** 2
    return (
        Case("group_norm_silu", by(*large[1:]), dtype, lambda t: _group_norm(t, dtype, large)),
        Case("group_norm_silu", by(*half[1:]), dtype, lambda t: _group_norm(t, dtype, half)),
        Case("add_bias", f"{by(*large[1:])}, residual", dtype, lambda t: (_add_bias(t, dtype, large),)),
        Case("join_phases", f"→ {by(*large[1:])}", dtype, lambda t: (_join_phases(t, dtype, large),)),
        Case("softmax_rows", by(cells, cells), dtype, lambda t: (_softmax_rows(t, dtype, cells),)),
        Case("to_uint8", f"{by(size, size)}, channels last", dtype, lambda t: (_to_uint8(t, dtype, size),)),
    )


def latent(size: int) -> tuple[Case, ...]:
    """Cases of the latent, which is float32."""
    cells = PATCH_NUMS[size][-1] ** 2
    shape = (1, cells, LATENT)
    return (
        Case("latent_sum", f"{by(cells, LATENT)}, residual", "float32", lambda t: (_latent_sum(t, shape),)),
        Case(
            "cast",
            f"{by(cells, LATENT)} to float16",
            "float32",
            lambda t: (cast.launch(t.read(shape, "float32"), t.write(shape, "float16")),),
        ),
        Case("transpose", by(cells, LATENT), "float32", lambda t: (_transpose(t, shape),)),
    )


def _take_rows(t: Tensors, dtype: str, tokens: int) -> Launch:
    index = np.random.default_rng(0).integers(0, CODEBOOK, tokens)
    return take_rows.launch(t.read((CODEBOOK, WIDTH), dtype), t.read((tokens,), "int64", index), t.write((2 * tokens, WIDTH), dtype))


def _add_silu(t: Tensors, dtype: str, rows: int, out: str = "") -> Launch:
    x, y = t.read((rows, DIFFUSION), dtype), t.write((rows, DIFFUSION), out or dtype)
    return add_silu.launch(x, y, t.read((DIFFUSION,), dtype), 0.02 if out else None)


def _layer_norm(t: Tensors, dtype: str, rows: int, out: str = "") -> Launch:
    shape = (rows, DIFFUSION)
    modulation = t.read((rows, 3 * DIFFUSION), dtype, parts=2 / 3)
    affine = t.read((DIFFUSION,), dtype), t.read((DIFFUSION,), dtype)
    y, step = t.write(shape, out or dtype), 0.02 if out else None
    return layer_norm_modulate.launch(t.read(shape, dtype), modulation, y, 0, 1, EPS, affine, step)


def _gate_residual(t: Tensors, dtype: str, rows: int) -> Launch:
    shape = (rows, DIFFUSION)
    h, modulation = t.update(shape, dtype), t.read((rows, 3 * DIFFUSION), dtype, parts=1 / 3)
    return gate_residual.launch(h, modulation, 2, t.read(shape, dtype), h)


def _diffusion_update(t: Tensors, dtype: str, tokens: int) -> Launch:
    x, raw = t.update((1, tokens, LATENT), "float32"), t.read((2 * tokens, 2 * LATENT), dtype)
    coefficients = (1.2, 0.6, 0.4, 0.5, 1.0, -4.0, -5.0, 4.0)
    return diffusion_update.launch(x, raw, t.read((1,), "uint64"), x, coefficients, 3, input_x=t.write((2 * tokens, LATENT), dtype))


def _group_norm(t: Tensors, dtype: str, shape: Shape) -> tuple[Launch, ...]:
    x, y = t.read(shape, dtype, parts=2), t.write(shape, dtype)
    affine = t.read(shape[-1:], dtype), t.read(shape[-1:], dtype)
    partial, folded = (t.write(s, "float32", parts=0) for s in group_norm_silu.scratch_shapes(shape, dtype))
    return group_norm_silu.launches(x, *affine, partial, folded, y, EPS)


def _add_bias(t: Tensors, dtype: str, shape: Shape) -> Launch:
    rows = (shape[1] * shape[2], shape[3])
    x, residual = t.update(rows, dtype), t.read(rows, dtype)
    return add_bias.launch(x, t.read(rows[1:], dtype), x, residual)


def _join_phases(t: Tensors, dtype: str, shape: Shape) -> Launch:
    batch, height, width, channels = shape
    return join_phases.launch(t.read((batch, height // 2 + 1, width // 2 + 1, 4 * channels), dtype), t.write(shape, dtype))


def _softmax_rows(t: Tensors, dtype: str, cells: int) -> Launch:
    x = t.update((cells, cells), dtype)
    return softmax_rows.launch(x, x)


def _to_uint8(t: Tensors, dtype: str, size: int) -> Launch:
    shape = (1, size, size, 3)
    return to_uint8.launch(t.read(shape, dtype), t.write(shape, "uint8"), channels_last=True)


def _latent_sum(t: Tensors, shape: Shape) -> Launch:
    f_hat = t.update(shape, "float32")
    return latent_sum.launch(f_hat, t.read(shape, "float32"), f_hat, t.read(shape, "float32"))


def _transpose(t: Tensors, shape: Shape) -> Launch:
    return transpose.launch(t.read(shape, "float32"), t.write((shape[0], shape[2], shape[1]), "float32"))
