"""The context engine as GPU work: text conditioning to the input of scale 0 and the head's modulation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hart_edge.plugins import Buffer, context_entry, rms_norm

from ..spec import ModelSpec
from .blocks import SCRATCH
from .buffers import rows, view
from .context import FusedContext
from .linear import Linear
from .program import Program
from .weights import Weights
from .workspace import Memory


@dataclass(frozen=True)
class ContextWeights:
    """The entry's weights; norm is None where the model has none. The head's scale and shift are products of their own."""

    norm: Buffer | None
    embed: Buffer
    embed_bias: Buffer
    level: Buffer
    ada: tuple[Buffer, Buffer]
    ada_bias: tuple[Buffer, Buffer]
    unconditional: tuple[Buffer, Buffer]

    @classmethod
    def load(cls, weights: Weights, width: int) -> ContextWeights:
        ada, bias = (np.split(weights.host(f"context.ada.{name}"), 2, axis=-1) for name in ("weight", "bias"))
        return cls(
            norm=weights.maybe("context.norm.weight"),
            embed=weights["context.embed.weight"],
            embed_bias=weights["context.embed.bias"],
            level=weights["context.level"],
            ada=(weights.put("fused.ada.scale", ada[0]), weights.put("fused.ada.shift", ada[1])),
            ada_bias=(weights.put("fused.ada.scale.bias", bias[0]), weights.put("fused.ada.shift.bias", bias[1])),
            unconditional=(
                view(weights["context.unconditional_scale"], 1, width),
                view(weights["context.unconditional_shift"], 1, width),
            ),
        )


@dataclass(frozen=True)
class ContextBuffers:
    """context [B·T, Ct] in; head [2B, C] scale and shift out, conditional rows first; normed and pooled are scratch."""

    context: Buffer
    normed: Buffer
    pooled: Buffer
    head: tuple[Buffer, Buffer]

    @classmethod
    def plan(cls, memory: Memory, spec: ModelSpec, batch: int, dtype: str) -> ContextBuffers:
        tokens = batch * spec.context_tokens
        return cls(
            context=memory.buffer("context", (tokens, spec.context_dim), dtype),
            normed=memory.buffer("context.normed", (tokens, spec.context_dim), dtype, SCRATCH),
            pooled=memory.buffer("context.pooled", (batch, spec.width), dtype, SCRATCH),
            head=(
                memory.buffer("head.scale", (2 * batch, spec.width), dtype),
                memory.buffer("head.shift", (2 * batch, spec.width), dtype),
            ),
        )


def add_context(
    program: Program, context: FusedContext, spec: ModelSpec, weights: ContextWeights, buffers: ContextBuffers, x: Buffer, eps: float
) -> None:
    """context → x [B·T, C] and the head's modulation of all 2B rows."""
    batch, tokens = buffers.pooled.shape[0], x.shape[0]
    entry = buffers.context
    if weights.norm is not None:
        program.kernels(rms_norm.launch(entry, weights.norm, buffers.normed, eps))
        entry = buffers.normed
    program.linear(Linear(context.blas, tokens, weights.embed, weights.embed_bias), entry, x)
    cube = view(x, batch, spec.context_tokens, spec.width)
    program.kernels(context_entry.launch(cube, weights.level, cube, buffers.pooled))
    for weight, bias, constant, out in zip(weights.ada, weights.ada_bias, weights.unconditional, buffers.head, strict=True):
        program.linear(Linear(context.blas, batch, weight, bias), buffers.pooled, rows(out, 0, batch))
        for row in range(batch, 2 * batch):
            program.copy(constant, rows(out, row, row + 1))
