"""Attention over the valid part of a cache, read in place: Hopper's kernel, cuDNN, or a plain kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hart_edge.plugins import Buffer, Launch, flash_attention
from hart_edge.plugins import attention as kernel

from ..errors import EngineError
from .context import FusedContext
from .cudnn import Cudnn, CudnnGraph


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of one attention: q and y are [rows, tokens, heads, head_dim], the caches [≥ rows, heads, capacity, head_dim].

    Attributes:
        length: valid positions of the caches.
        scale: factor of the scores.
    """

    rows: int
    tokens: int
    length: int
    heads: int
    head_dim: int
    capacity: int
    dtype: str
    scale: float

    def __str__(self) -> str:
        return f"attention of {self.rows} x {self.tokens} queries to {self.length} keys, {self.heads} heads of {self.head_dim}"


class Attention:
    """`y = softmax(scale · q · kᵀ) · v` for one shape; built at load, run for every layer.

    In float16 `flash_attention` where the GPU and the heads are what it is made for: with 700 queries or more it is faster than cuDNN
    there, with fewer about as fast (docs/measurements.md). Elsewhere cuDNN. What cuDNN does not serve, float32 among it, the plain
    kernel does.

    Attributes:
        flash: whether Hopper's kernel runs.
        refusal: why our plain kernel runs where cuDNN was wanted; "" when cuDNN runs or was not wanted.
    """

    def __init__(self, context: FusedContext, shape: AttentionShape) -> None:
        self.shape, self._context, self.refusal = shape, context, ""
        self._graph: CudnnGraph | None = None
        self.flash = _flash_runs(shape, context.device.info.capability)
        if shape.dtype == "float16" and not self.flash:
            try:
                self._graph = build_graph(context.cudnn, shape)
            except EngineError as error:
                self.refusal = str(error)

    @property
    def by_cudnn(self) -> bool:
        return self._graph is not None

    def run(self, q: Buffer, k: Buffer, v: Buffer, y: Buffer) -> None:
        """q, y [R, L, H, D]; k, v [≥ R, H, capacity, D]; all on the context's stream."""
        if self._graph is not None:
            self._graph.run(q=q.address, k=k.address, v=v.address, y=y.address)
        else:
            self._context.launch(self._launch(q, k, v, y))

    def _launch(self, q: Buffer, k: Buffer, v: Buffer, y: Buffer) -> Launch:
        build = flash_attention.launch if self.flash else kernel.launch
        return build(q, k, v, y, self.shape.length, self.shape.scale)


def _flash_runs(shape: AttentionShape, capability: int) -> bool:
    given = (capability, shape.dtype, shape.head_dim)
    wanted = (flash_attention.ARCHITECTURE, flash_attention.DTYPE, flash_attention.HEAD_DIM)
    return given == wanted


def build_graph(cudnn: Cudnn, shape: AttentionShape) -> CudnnGraph:
    """cuDNN's fused attention; EngineError where it does not serve the shape, the type or the device."""

    def describe(graph: Any) -> Mapping[str, Any]:
        kind = cudnn.types(shape.dtype)
        width, capacity = shape.heads * shape.head_dim, shape.capacity
        packed = [shape.tokens * width, shape.head_dim, width, 1]  # [R, L, H, D], seen as [R, H, L, D]
        cached = [shape.heads * capacity * shape.head_dim, capacity * shape.head_dim, shape.head_dim, 1]
        queries = [shape.rows, shape.heads, shape.tokens, shape.head_dim]
        keys = [shape.rows, shape.heads, shape.length, shape.head_dim]
        q = graph.tensor(name="q", dim=queries, stride=packed, data_type=kind)
        k, v = (graph.tensor(name=name, dim=keys, stride=cached, data_type=kind) for name in "kv")
        y, _ = graph.sdpa(q=q, k=k, v=v, generate_stats=False, attn_scale=shape.scale, name="attention")
        y.set_output(True).set_dim(queries).set_stride(packed).set_data_type(kind)
        return {"q": q, "k": k, "v": v, "y": y}

    return cudnn.build(str(shape), shape, shape.dtype, describe, choose=False)


class Attentions:
    """The attentions of one context, each built when it is first asked for."""

    def __init__(self, context: FusedContext) -> None:
        self._context = context
        self._built: dict[AttentionShape, Attention] = {}

    @property
    def built(self) -> tuple[Attention, ...]:
        """All so far."""
        return tuple(self._built.values())

    def get(self, shape: AttentionShape) -> Attention:
        if shape not in self._built:
            self._built[shape] = Attention(self._context, shape)
        return self._built[shape]
