"""A bundle of random weights in any size for the fused engine, without torch: for measuring and for memory plans.

The graphs are the bundled model's, of which the fused engine reads constants only; no other backend can run such a bundle.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hart_edge.plugins.quantize import E4M3_MAX, Array, e4m3_codes
from hart_edge.runtime.bundle import MANIFEST, WEIGHTS, Bundle, bundled_folder
from hart_edge.runtime.spec import ModelSpec

Shapes = Iterator[tuple[str, tuple[int, ...]]]
Headers = list[tuple[str, str, tuple[int, ...]]]
"""Name, type as a weights file calls it, and shape of every tensor."""

FP8_PRODUCTS = {
    "transformer": r"transformer\.layers\.\d+\.(qkv|proj|gate|up|down)\.weight",
    "diffusion": r"residual_condition\.condition\.weight|residual_step\.(layers\.\d+\.(modulation|first|second)|final_modulation)\.weight",
    "text": r"text_encoder\.layers\.\d+\.[qkvo]\.weight|text_encoder\.layers\.\d+\.(gate|up|down)\.weight",
}
"""Weights that can be FP8, by part."""
INPUT_LIMIT = 32.0
"""Largest input of an FP8 product: normal numbers and products of two stay far below."""


@dataclass(frozen=True)
class Sizes:
    """What a `ModelSpec` does not say: MLP width, diffusion depth, decoder channels, and the text encoder's sizes."""

    hidden: int
    diffusion_depth: int
    channels: int
    multipliers: tuple[int, ...]
    text_layers: int
    text_heads: int
    text_hidden: int
    text_head_dim: int
    text_kv_heads: int = 2
    vocabulary: int = 512


HART_1024 = ModelSpec(
    patch_nums=(1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
    phi_index=(0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3),
    context_tokens=300,
    context_dim=1536,
    depth=24,
    width=1536,
    heads=24,
    codebook_size=4096,
    latent_channels=32,
    diffusion_width=1024,
    diffusion_steps=8,
    downsample=16,
)
HART_512 = replace(HART_1024, patch_nums=(1, 2, 3, 4, 6, 9, 13, 18, 24, 32), phi_index=(0, 0, 1, 1, 1, 2, 2, 3, 3))
RELEASED = Sizes(4096, 6, 160, (1, 1, 2, 2, 4), text_layers=28, text_heads=12, text_hidden=8960, text_head_dim=128, vocabulary=151936)
BUNDLED = Sizes(768, 3, 32, (1, 1, 2, 2, 3), text_layers=3, text_heads=3, text_hidden=512, text_head_dim=64, text_kv_heads=1)


def small_bundle(folder: Path) -> Bundle:
    """Two layers as wide as the bundled model's, and four scales: what the emulated GPU draws in a second."""
    spec = replace(Bundle(bundled_folder(), check_files=False).spec, patch_nums=(1, 2, 3, 4), phi_index=(0, 2, 3), depth=2)
    return make_bundle(folder, spec, BUNDLED)


def make_bundle(folder: Path, spec: ModelSpec, sizes: Sizes, seed: int = 0, fp8: Iterable[str] = ()) -> Bundle:
    """Write and open it; the parts that `fp8` names have FP8 weights (`FP8_PRODUCTS`), with the values of the others, rounded."""
    headers = _headers(spec, sizes, fp8)
    folder.mkdir(parents=True)
    write_weights(folder / WEIGHTS, headers, _tensors(headers, seed))
    return _with_weights(folder, spec)


def make_hollow_bundle(folder: Path, spec: ModelSpec, sizes: Sizes) -> Bundle:
    """One whose weights are a hole in the file: all zeros, and next to nothing on the disk."""
    folder.mkdir(parents=True)
    write_weights(folder / WEIGHTS, _headers(spec, sizes), ())
    return _with_weights(folder, spec)


def write_weights(path: Path, headers: Headers, tensors: Iterable[Array]) -> None:
    """A safetensors file, FP8 tensors as their codes; zeros from where `tensors` ends."""
    entries, end = {}, 0
    for name, kind, shape in headers:
        size = math.prod(shape) * int(re.sub(r"\D", "", kind.split("_")[0])) // 8
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries).encode()
    text += b" " * (-(len(text) + 8) % 64)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors:
            array.tofile(file)
        file.truncate(8 + len(text) + end)


def _with_weights(folder: Path, spec: ModelSpec) -> Bundle:
    """The rest of a bundle beside its weights."""
    source = bundled_folder()
    for path in source.iterdir():
        if path.suffix in (".onnx", ".json"):
            shutil.copy(path, folder / path.name)
    manifest = json.loads((source / MANIFEST).read_text()) | {"model": spec.to_json(), "defaults": {}}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return Bundle(folder, check_files=False)


def _headers(spec: ModelSpec, sizes: Sizes, fp8: Iterable[str] = ()) -> Headers:
    """All tensors; an FP8 weight is followed by its scale and its input's."""
    chosen = "|".join(FP8_PRODUCTS[part] for part in fp8) or "(?!)"
    headers: Headers = []
    for name, shape in _shapes(spec, sizes):
        if re.fullmatch(chosen, name):
            headers += [(name, "F8_E4M3", shape), (f"{name}.scale", "F32", ()), (f"{name}.input_scale", "F32", ())]
        else:
            headers.append((name, f"F{8 * _dtype(name).itemsize}", shape))
    return headers


def _tensors(headers: Headers, seed: int) -> Iterator[Array]:
    """Numbers out of one long row of normal ones: drawing and quantising billions would take minutes."""
    row = np.random.default_rng(seed).standard_normal(1 << 20).astype(np.float32)
    largest = np.abs(row).max()
    codes, scale = e4m3_codes(row * (E4M3_MAX / largest)), 0.0
    for i, (name, kind, shape) in enumerate(headers):
        fan = math.prod(shape) // (shape[0] if len(shape) == 4 else shape[-1]) if len(shape) > 1 else 1
        if kind == "F8_E4M3":
            scale = largest / E4M3_MAX / math.sqrt(fan)
            yield np.resize(np.roll(codes, 997 * i), shape)
        elif name.endswith(".weight.input_scale"):
            yield np.float32(INPUT_LIMIT / E4M3_MAX)
        elif name.endswith(".weight.scale"):
            yield np.float32(scale)
        else:
            values = _plain(name, len(shape), row / math.sqrt(max(1, fan))).astype(_dtype(name))
            yield np.resize(np.roll(values, 997 * i), shape)


def _plain(name: str, rank: int, values: Array) -> Array:
    """As the values of a model lie: norms near 1, and no large exponent of the diffusion's variance, which would be infinite."""
    if rank == 1 and "norm" in name and name.endswith("weight"):
        return 1 + 0.05 * values
    return 0.1 * values if name.startswith("residual_step.final.") else values


def _shapes(spec: ModelSpec, sizes: Sizes) -> Shapes:
    yield from (*_transformer(spec, sizes), *_diffusion(spec, sizes), *_decoder(spec, sizes), *_text(spec, sizes))


def _dtype(name: str) -> np.dtype:
    return np.dtype(np.float32 if name.startswith(("transition.", "constants.codebook")) else np.float16)


def _linear(name: str, inner: int, outer: int, bias: bool = True) -> Shapes:
    yield f"{name}.weight", (inner, outer)
    if bias:
        yield f"{name}.bias", (outer,)


def _transformer(spec: ModelSpec, sizes: Sizes) -> Shapes:
    c, z = spec.width, spec.latent_channels
    yield "constants.codebook", (spec.codebook_size, z)
    for name in ("k", "v"):
        yield f"constants.unconditional_{name}", (spec.depth, spec.heads, spec.head_dim)
    yield "context.norm.weight", (spec.context_dim,)
    yield "context.level", (c,)
    for name in ("scale", "shift"):
        yield f"context.unconditional_{name}", (1, 1, c)
    yield from _linear("context.embed", spec.context_dim, c)
    yield from _linear("context.ada", c, 2 * c)
    for i in range(spec.depth):
        name = f"transformer.layers.{i}"
        yield f"{name}.norm.weight", (c,)
        yield from _linear(f"{name}.qkv", c, 3 * c)
        yield from _linear(f"{name}.proj", c, c)
        yield from _linear(f"{name}.gate", c, sizes.hidden, bias=False)
        yield from _linear(f"{name}.up", c, sizes.hidden, bias=False)
        yield from _linear(f"{name}.down", sizes.hidden, c, bias=False)
    yield "transformer.head_norm.weight", (c,)
    yield from _linear("transformer.head", c, spec.codebook_size)
    phis = 1 + max(spec.phi_index)
    yield "transition.phi_weight", (phis * z, z, 3, 3)
    yield "transition.phi_bias", (phis * z,)
    yield from _linear("transition.embed", z, c)
    yield "transition.levels", (spec.scales, c)


def _diffusion(spec: ModelSpec, sizes: Sizes) -> Shapes:
    w, z = spec.diffusion_width, spec.latent_channels
    yield "residual_condition.codebook", (spec.codebook_size, z)
    yield "residual_condition.norm.weight", (spec.width,)
    yield from _linear("residual_condition.embed", z, spec.width)
    yield from _linear("residual_condition.condition", spec.width, w)
    yield from _linear("residual_step.time_first", 256, w)
    yield from _linear("residual_step.time_second", w, w)
    yield from _linear("residual_step.input", z, w)
    yield from _linear("residual_step.final_modulation", w, 2 * w)
    yield from _linear("residual_step.final", w, 2 * z)
    for i in range(sizes.diffusion_depth):
        name = f"residual_step.layers.{i}"
        yield from _linear(f"{name}.modulation", w, 3 * w)
        yield from _linear(f"{name}.first", w, w)
        yield from _linear(f"{name}.second", w, w)
        for part in ("weight", "bias"):
            yield f"{name}.norm_{part}", (w,)


def _decoder(spec: ModelSpec, sizes: Sizes) -> Shapes:
    widths = [sizes.channels * m for m in sizes.multipliers]
    z, top, last = spec.latent_channels, widths[-1], len(widths) - 1
    body = "decoder.decoder"
    yield from _conv("decoder.post_quant_conv", z, z)
    yield from _conv(f"{body}.conv_in", z, top)
    yield from _block(f"{body}.mid.block_1", top, top)
    yield from _attention(f"{body}.mid.attn_1", top)
    yield from _block(f"{body}.mid.block_2", top, top)
    for level, (inner, outer) in enumerate(zip([*widths[1:], top], widths, strict=True)):
        for i in range(3):
            yield from _block(f"{body}.up.{level}.block.{i}", inner if i == 0 else outer, outer)
            if level == last:
                yield from _attention(f"{body}.up.{level}.attn.{i}", outer)
        if level:
            yield from _conv(f"{body}.up.{level}.upsample.conv", outer, outer)
    yield from _norm(f"{body}.norm_out", widths[0])
    yield from _conv(f"{body}.conv_out", widths[0], 3)


def _conv(name: str, inner: int, outer: int, side: int = 3) -> Shapes:
    yield f"{name}.weight", (outer, inner, side, side)
    yield f"{name}.bias", (outer,)


def _norm(name: str, channels: int) -> Shapes:
    for part in ("weight", "bias"):
        yield f"{name}.{part}", (channels,)


def _block(name: str, inner: int, outer: int) -> Shapes:
    yield from _norm(f"{name}.norm1", inner)
    yield from _conv(f"{name}.conv1", inner, outer)
    yield from _norm(f"{name}.norm2", outer)
    yield from _conv(f"{name}.conv2", outer, outer)
    if inner != outer:
        yield from _conv(f"{name}.nin_shortcut", inner, outer, 1)


def _attention(name: str, channels: int) -> Shapes:
    yield from _norm(f"{name}.norm", channels)
    yield from _conv(f"{name}.qkv", channels, 3 * channels, 1)
    yield from _conv(f"{name}.proj_out", channels, channels, 1)


def _text(spec: ModelSpec, sizes: Sizes) -> Shapes:
    c, d = spec.context_dim, sizes.text_head_dim
    yield "text_encoder.embedding", (sizes.vocabulary, c)
    yield "text_encoder.norm.weight", (c,)
    for table in ("cos", "sin"):
        yield f"text_encoder.{table}", (spec.context_tokens, d)
    for i in range(sizes.text_layers):
        name = f"text_encoder.layers.{i}"
        for norm in ("attention_norm", "mlp_norm"):
            yield f"{name}.{norm}.weight", (c,)
        for part, heads in (("q", sizes.text_heads), ("k", sizes.text_kv_heads), ("v", sizes.text_kv_heads)):
            yield from _linear(f"{name}.{part}", c, heads * d)
        yield from _linear(f"{name}.o", sizes.text_heads * d, c, bias=False)
        yield from _linear(f"{name}.gate", c, sizes.text_hidden, bias=False)
        yield from _linear(f"{name}.up", c, sizes.text_hidden, bias=False)
        yield from _linear(f"{name}.down", sizes.text_hidden, c, bias=False)
