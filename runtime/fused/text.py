"""The text encoder as GPU work: a Qwen2 decoder over [cached system prompt; prompt], grouped-query attention, SwiGLU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hart_edge.plugins import Buffer, attention, rms_norm, rope_tables, swiglu, take_rows

from ..engine import Array
from .buffers import prefix, rows, view
from .context import FusedContext
from .fp8 import Weight, fed, load_weight
from .linear import Linear
from .program import Program
from .weights import Weights
from .workspace import Memory

PHASE = "text"


@dataclass(frozen=True)
class TextLayer:
    """One layer; qkv [Ct, (H + 2·KV)·D] and gate_up [Ct, 2F] are joined so that each is one product."""

    attention_norm: Buffer
    qkv: Weight
    qkv_bias: Buffer
    out: Weight
    mlp_norm: Buffer
    gate_up: Weight
    down: Weight


@dataclass(frozen=True)
class TextWeights:
    """All layers. cos, sin [1, T, D]; system: the system prompt's keys and values [layers, KV, S, D], or None."""

    embedding: Buffer
    layers: tuple[TextLayer, ...]
    norm: Buffer
    cos: Buffer
    sin: Buffer
    heads: int
    kv_heads: int
    system: tuple[Array, Array] | None

    @property
    def tokens(self) -> int:
        return self.cos.shape[1]

    @property
    def head_dim(self) -> int:
        return self.cos.shape[2]

    @property
    def before(self) -> int:
        """S, positions of the system prompt."""
        return 0 if self.system is None else int(self.system[0].shape[2])

    @property
    def hidden(self) -> int:
        return self.layers[0].down.shape[0]

    @classmethod
    def load(cls, weights: Weights) -> TextWeights:
        depth = sum(name.startswith("text_encoder.layers.") and name.endswith(".o.weight") for name in weights.names)
        tables = [weights[f"text_encoder.{name}"] for name in ("cos", "sin")]
        cos, sin = (view(table, 1, *table.shape) for table in tables)
        q, k = (weights.shape(f"text_encoder.layers.0.{name}.weight")[1] // cos.shape[2] for name in "qk")
        has_system = "text_encoder.system_k" in weights
        return cls(
            embedding=weights["text_encoder.embedding"],
            layers=tuple(_load_layer(weights, f"text_encoder.layers.{i}") for i in range(depth)),
            norm=weights["text_encoder.norm.weight"],
            cos=cos,
            sin=sin,
            heads=q,
            kv_heads=k,
            system=(weights.host("text_encoder.system_k"), weights.host("text_encoder.system_v")) if has_system else None,
        )


def _load_layer(weights: Weights, name: str) -> TextLayer:
    return TextLayer(
        attention_norm=weights[f"{name}.attention_norm.weight"],
        qkv=load_weight(weights, *(f"{name}.{part}.weight" for part in "qkv")),
        qkv_bias=weights.put_joined(f"fused.{name}.qkv.bias", *(f"{name}.{part}.bias" for part in "qkv")),
        out=load_weight(weights, f"{name}.o.weight"),
        mlp_norm=weights[f"{name}.mlp_norm.weight"],
        gate_up=load_weight(weights, f"{name}.gate.weight", f"{name}.up.weight"),
        down=load_weight(weights, f"{name}.down.weight"),
    )


@dataclass(frozen=True)
class TextBuffers:
    """ids [B·T], mask [B, T], first [B] int64 in; out [B·T, Ct]. The caches hold the system prompt, the rest is scratch."""

    ids: Buffer
    mask: Buffer
    first: Buffer
    out: Buffer
    x: Buffer
    normed: Buffer
    qkv: Buffer
    q: Buffer
    y: Buffer
    gate_up: Buffer
    inner: Buffer
    caches: tuple[tuple[Buffer, Buffer], ...]

    @classmethod
    def plan(cls, memory: Memory, weights: TextWeights, batch: int) -> TextBuffers:
        n, dtype = batch * weights.tokens, weights.embedding.dtype
        width, inner = weights.embedding.shape[1], weights.heads * weights.head_dim
        sizes = {"x": width, "normed": width, "qkv": weights.layers[0].qkv.shape[1], "q": inner, "y": inner}
        sizes |= {"gate_up": 2 * weights.hidden, "inner": weights.hidden}
        cache = (batch, weights.kv_heads, weights.before + weights.tokens, weights.head_dim)
        lives = "" if weights.system else PHASE
        return cls(
            ids=memory.buffer("text.ids", (n,), "int64"),
            mask=memory.buffer("text.mask", (batch, weights.tokens), "int64"),
            first=memory.buffer("text.first", (batch,), "int64"),
            out=memory.buffer("text.out", (n, width), dtype),
            caches=tuple(
                (memory.buffer(f"text.k.{i}", cache, dtype, lives), memory.buffer(f"text.v.{i}", cache, dtype, lives))
                for i in range(len(weights.layers))
            ),
            **{name: memory.buffer(f"text.{name}", (n, size), dtype, PHASE) for name, size in sizes.items()},
        )


def put_system(context: FusedContext, weights: TextWeights, buffers: TextBuffers) -> None:
    """The system prompt's keys and values into the caches of every row; nothing overwrites them."""
    if weights.system is None:
        return
    for layer, pair in enumerate(buffers.caches):
        for cache, constant in zip(pair, weights.system, strict=True):
            flat = view(cache, cache.shape[0] * cache.shape[1], *cache.shape[2:])
            for row in range(flat.shape[0]):
                part = prefix(rows(flat, row, row + 1), weights.before, weights.head_dim)
                context.upload(part, np.ascontiguousarray(constant[layer, row % weights.kv_heads]))


def set_prompt(context: FusedContext, weights: TextWeights, buffers: TextBuffers, ids: Array, mask: Array) -> None:
    """The prompts' ids and mask, [B, T] int64 each, to the device."""
    context.upload(buffers.ids, np.ascontiguousarray(ids.reshape(-1)))
    context.upload(buffers.mask, np.ascontiguousarray(mask))
    context.upload(buffers.first, attention.first_positions(mask, weights.before))


def add_text(program: Program, context: FusedContext, weights: TextWeights, buffers: TextBuffers, eps: float) -> None:
    """The prompts → `buffers.out`, the last hidden state after the final norm."""
    program.kernels(take_rows.launch(weights.embedding, buffers.ids, buffers.x))
    for layer, caches in zip(weights.layers, buffers.caches, strict=True):
        _add_layer(program, context, weights, buffers, layer, caches, eps)
    program.kernels(rms_norm.launch(buffers.x, weights.norm, buffers.out, eps))


def _add_layer(
    program: Program,
    context: FusedContext,
    weights: TextWeights,
    buffers: TextBuffers,
    layer: TextLayer,
    caches: tuple[Buffer, Buffer],
    eps: float,
) -> None:
    n, blas, x, normed = buffers.x.shape[0], context.blas, buffers.x, buffers.normed
    heads = (buffers.mask.shape[0], weights.tokens, weights.heads, weights.head_dim)
    q, y = view(buffers.q, *heads), view(buffers.y, *heads)
    length, scale = weights.before + weights.tokens, 1 / math.sqrt(weights.head_dim)
    given, step = fed(layer.qkv, normed)
    program.kernels(rms_norm.launch(x, layer.attention_norm, given, eps, scale=step))
    program.linear(Linear(blas, n, layer.qkv, layer.qkv_bias), given, buffers.qkv)
    program.kernels(
        rope_tables.launch(buffers.qkv, weights.cos, weights.sin, q, *caches, weights.before),
        attention.launch(q, *caches, y, length, scale, buffers.mask, buffers.first),
    )
    program.linear(Linear(blas, n, layer.out), program.quantized(layer.out, buffers.y, buffers.q), x, residual=x)
    given, step = fed(layer.gate_up, normed)
    program.kernels(rms_norm.launch(x, layer.mlp_norm, given, eps, scale=step))
    program.linear(Linear(blas, n, layer.gate_up), given, buffers.gate_up)
    given, step = fed(layer.down, buffers.inner)
    program.kernels(swiglu.launch(buffers.gate_up, given, scale=step))
    program.linear(Linear(blas, n, layer.down), given, x, residual=x)
