"""The transformer's layers as GPU work: weights as the products want them, and one scale's pass through all layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hart_edge.plugins import Buffer, Launch, rms_norm, rope_tables, swiglu, take_rows

from ..spec import UNCONDITIONAL_K, UNCONDITIONAL_V, ModelSpec
from .attention import Attentions, AttentionShape
from .buffers import prefix, rows, view
from .context import FusedContext
from .facts import GraphFacts
from .fp8 import Weight, fed, load_weight
from .linear import Linear
from .program import Program
from .weights import Weights
from .workspace import Memory

SCRATCH = "scale"
"""The phase of a pass's intermediate results."""


@dataclass(frozen=True)
class LayerWeights:
    """One layer. qkv_bias [3C] is q_bias, zeros, v_bias; gate_up [C, 2F] makes both in one product; gain [H] or None."""

    norm: Buffer
    qkv: Weight
    qkv_bias: Buffer
    proj: Weight
    proj_bias: Buffer
    gate_up: Weight
    down: Weight
    gain: Buffer | None

    @property
    def q_bias(self) -> Buffer:
        return rows(self.qkv_bias, 0, self.qkv_bias.shape[0] // 3)

    @property
    def v_bias(self) -> Buffer:
        width = self.qkv_bias.shape[0] // 3
        return rows(self.qkv_bias, 2 * width, 3 * width)


@dataclass(frozen=True)
class TransformerWeights:
    """All layers and the head; head_bias is float32, like the logits."""

    layers: tuple[LayerWeights, ...]
    head_norm: Buffer
    head: Buffer
    head_bias: Buffer

    @property
    def hidden(self) -> int:
        """F, the width of a layer's MLP."""
        return self.layers[0].down.shape[0]

    @classmethod
    def load(cls, weights: Weights, depth: int) -> TransformerWeights:
        return cls(
            layers=tuple(_load_layer(weights, f"transformer.layers.{i}") for i in range(depth)),
            head_norm=weights["transformer.head_norm.weight"],
            head=weights["transformer.head.weight"],
            head_bias=weights.copy("transformer.head.bias", "fused.head.bias", lambda bias: bias.astype(np.float32)),
        )


def _load_layer(weights: Weights, name: str) -> LayerWeights:
    gain = f"{name}.logit_scale"
    return LayerWeights(
        norm=weights[f"{name}.norm.weight"],
        qkv=load_weight(weights, f"{name}.qkv.weight"),
        qkv_bias=weights[f"{name}.qkv.bias"],
        proj=load_weight(weights, f"{name}.proj.weight"),
        proj_bias=weights[f"{name}.proj.bias"],
        gate_up=load_weight(weights, f"{name}.gate.weight", f"{name}.up.weight"),
        down=load_weight(weights, f"{name}.down.weight"),
        gain=weights.copy(gain, f"fused.{gain}", lambda value: value.reshape(-1)) if gain in weights else None,
    )


@dataclass(frozen=True)
class Caches:
    """Keys and values of every layer, [2B, H, capacity, D]."""

    k: tuple[Buffer, ...]
    v: tuple[Buffer, ...]

    @classmethod
    def plan(cls, memory: Memory, spec: ModelSpec, batch: int, dtype: str) -> Caches:
        shape = (2 * batch, spec.heads, spec.cache_length, spec.head_dim)
        k, v = (tuple(memory.buffer(f"cache.{name}.{i}", shape, dtype) for i in range(spec.depth)) for name in "kv")
        return cls(k, v)

    def reset(self, context: FusedContext, constants: Unconditional, scratch: Scratch, zeros: Buffer) -> None:
        """Write the unconditional context's keys and values; they stay, so once is enough.

        Row B + j of a cache is unconditional; only its first T positions are written, and no scale writes there. A layer's packed
        row is repeated for every position, and "rotated" into the caches by an angle of 0: two launches where copies would be one
        per row and head.

        Args:
            zeros: [≥ B·T] int64.
        """
        (_, tokens, head_dim), batch = constants.cos.shape, self.k[0].shape[0] // 2
        count = batch * tokens
        qkv = rows(scratch.qkv, 0, count)
        q = view(rows(scratch.q, 0, count), batch, tokens, qkv.shape[1] // 3 // head_dim, head_dim)
        for layer, (k, v) in enumerate(zip(self.k, self.v, strict=True)):
            context.launch(take_rows.launch(rows(constants.packed, layer, layer + 1), prefix(zeros, count), qkv))
            below = rows(k, batch, 2 * batch), rows(v, batch, 2 * batch)
            context.launch(rope_tables.launch(qkv, constants.cos, constants.sin, q, *below, 0))


@dataclass(frozen=True)
class Unconditional:
    """Keys and values of the unconditional context, the same at all T positions.

    Attributes:
        packed: [depth, 3C], a row of zeros for q, k and v.
        cos, sin: [1, T, D], of an angle of 0.
    """

    packed: Buffer
    cos: Buffer
    sin: Buffer

    @classmethod
    def load(cls, weights: Weights, spec: ModelSpec) -> Unconditional:
        k, v = (weights.host(name).reshape(spec.depth, spec.width) for name in (UNCONDITIONAL_K, UNCONDITIONAL_V))
        table = np.ones((1, spec.context_tokens, spec.head_dim), k.dtype)
        return cls(
            packed=weights.put("fused.unconditional", np.concatenate([np.zeros_like(k), k, v], axis=1)),
            cos=weights.put("fused.unconditional.cos", table),
            sin=weights.put("fused.unconditional.sin", np.zeros_like(table)),
        )


@dataclass(frozen=True)
class Scratch:
    """Intermediate results of a pass over up to `most` tokens of all rows together."""

    normed: Buffer  # [most, C]
    qkv: Buffer  # [most, 3C]
    q: Buffer  # [most, C]
    gate_up: Buffer  # [most, 2F]
    inner: Buffer  # [most, F]

    @classmethod
    def plan(cls, memory: Memory, most: int, width: int, hidden: int, dtype: str) -> Scratch:
        sizes = {"normed": width, "qkv": 3 * width, "q": width, "gate_up": 2 * hidden, "inner": hidden}
        return cls(**{name: memory.buffer(f"scratch.{name}", (most, size), dtype, SCRATCH) for name, size in sizes.items()})


@dataclass(frozen=True)
class Pass:
    """Sizes of one pass: rows R, tokens L of each, and the cache position of the first."""

    rows: int
    tokens: int
    start: int

    @property
    def count(self) -> int:
        """Tokens of all rows together."""
        return self.rows * self.tokens


Rotate = Callable[[int, Buffer, Buffer, Buffer, Buffer], Launch]
"""(layer, qkv [R·L, 3C], q [R, L, H, D], k cache, v cache) → the launch that rotates q and k and fills the caches."""


class Layers:
    """Puts the layers' work for one pass into a program.

    Args:
        biased: whether the qkv product adds its bias; otherwise the rotation does.
    """

    def __init__(
        self, context: FusedContext, spec: ModelSpec, weights: TransformerWeights, attentions: Attentions, facts: GraphFacts, biased: bool
    ) -> None:
        self._context, self._spec, self._weights, self._attentions = context, spec, weights, attentions
        self._eps, self._scale, self._biased = facts.norm_eps, facts.attention_scale, biased

    def add(self, program: Program, now: Pass, x: Buffer, scratch: Scratch, caches: Caches, rotate: Rotate) -> None:
        """x [R·L, C] becomes the last layer's output."""
        for i in range(len(self._weights.layers)):
            self._add_layer(program, now, i, x, scratch, caches, rotate)

    def _add_layer(self, program: Program, now: Pass, i: int, x: Buffer, scratch: Scratch, caches: Caches, rotate: Rotate) -> None:
        spec, layer, blas, n = self._spec, self._weights.layers[i], self._context.blas, now.count
        normed, qkv, spare = (rows(buffer, 0, n) for buffer in (scratch.normed, scratch.qkv, scratch.q))
        heads = (now.rows, now.tokens, spec.heads, spec.head_dim)
        q, y = view(spare, *heads), view(normed, *heads)
        given = self._add_norm(program, x, layer.norm, layer.qkv, normed)
        program.linear(Linear(blas, n, layer.qkv, layer.qkv_bias if self._biased else None), given, qkv)
        program.kernels(rotate(i, qkv, q, caches.k[i], caches.v[i]))
        attention = self._attentions.get(self._shape(now, caches.k[i]))
        program.call([lambda: attention.run(q, caches.k[i], caches.v[i], y)])
        given = program.quantized(layer.proj, normed, spare)
        program.linear(Linear(blas, n, layer.proj, layer.proj_bias), given, x, residual=x)
        gate_up, (inner, step) = rows(scratch.gate_up, 0, n), fed(layer.down, rows(scratch.inner, 0, n))
        given = self._add_norm(program, x, layer.norm, layer.gate_up, normed)
        program.linear(Linear(blas, n, layer.gate_up), given, gate_up)
        program.kernels(swiglu.launch(gate_up, inner, scale=step))
        program.linear(Linear(blas, n, layer.down), inner, x, residual=x)

    def _add_norm(self, program: Program, x: Buffer, norm: Buffer, product: Weight, normed: Buffer) -> Buffer:
        """x normalised as the product takes it."""
        given, step = fed(product, normed)
        program.kernels(rms_norm.launch(x, norm, given, self._eps, scale=step))
        return given

    def _shape(self, now: Pass, cache: Buffer) -> AttentionShape:
        spec = self._spec
        length = now.start + now.tokens
        return AttentionShape(now.rows, now.tokens, length, spec.heads, spec.head_dim, cache.shape[2], cache.dtype, self._scale)

    def add_head_norm(self, program: Program, x: Buffer, head: tuple[Buffer, Buffer], normed: Buffer) -> None:
        """The head's norm and modulation: x, normed [N, C] of R groups of rows; head: scale and shift [R, C]."""
        program.kernels(rms_norm.launch(x, self._weights.head_norm, normed, self._eps, modulation=head))

    def add_logits(self, program: Program, normed: Buffer, logits: Buffer) -> None:
        """normed [N, C] → logits [N, V] float32."""
        weights = self._weights
        program.linear(Linear(self._context.blas, normed.shape[0], weights.head, weights.head_bias, "float32"), normed, logits)
