"""Drives the transformer engine scale by scale. Knows nothing of sampling or pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .engine import Array, Engine, Tensor
from .kv_cache import KVCaches
from .memory import HOST, Memory
from .noise import Float32
from .rotary import image_tables, text_tables
from .spec import UNCONDITIONAL_K, UNCONDITIONAL_V, ModelSpec


@dataclass(frozen=True)
class Conditioning:
    """Text conditioning of B prompts.

    Attributes:
        hidden: [B, T, Ct], the text encoder's output, padded positions included, in any memory.
        position_ids: [B, T] int64, `cumsum(mask) − 1`.
    """

    hidden: Tensor
    position_ids: npt.NDArray[np.int64]

    @property
    def batch(self) -> int:
        return int(self.hidden.shape[0])


class ScaleTransformer:
    """The transformer and its text entry; `begin` starts a run of its own for every batch.

    At scale 0 only the B conditional rows run: its guidance weight is 0 and the unconditional rows' keys and values
    are constants. From scale 1 on there are 2B rows, conditional first.
    """

    def __init__(self, spec: ModelSpec, context: Engine, transformer: Engine, constants: dict[str, Array], memory: Memory = HOST) -> None:
        self.spec, self.engine, self.memory, self._context = spec, transformer, memory, context
        dtype = transformer.inputs["x"].dtype
        self.caches = KVCaches(spec, dtype, constants[UNCONDITIONAL_K], constants[UNCONDITIONAL_V], memory)

    def begin(self, conditioning: Conditioning) -> tuple[TransformerRun, Tensor]:
        """Start a batch; returns the run and the input of scale 0, [B, T, C]."""
        x, head = self.embed(conditioning)
        return TransformerRun(self, conditioning.position_ids, head), x

    def embed(self, conditioning: Conditioning) -> tuple[Tensor, dict[str, Tensor]]:
        """Input of scale 0 [B, T, C] and the head's modulation, `head_scale` and `head_shift` [2B, 1, C]."""
        spec, batch, dtype = self.spec, conditioning.batch, self.engine.inputs["x"].dtype
        x = self.memory.empty((batch, spec.context_tokens, spec.width), dtype)
        head = {name: self.memory.empty((2 * batch, 1, spec.width), dtype) for name in ("head_scale", "head_shift")}
        hidden = conditioning.hidden
        if isinstance(hidden, np.ndarray):  # a recorded one may be float32 whatever the engines compute in
            hidden = hidden.astype(self._context.inputs["context"].dtype, copy=False)
        self._context.run({"context": hidden}, {"x": x, **head})
        return x, head


class TransformerRun:
    """One batch under way: its cache, its context positions [B, T] and its head modulation."""

    def __init__(self, transformer: ScaleTransformer, position_ids: npt.NDArray[np.int64], head: dict[str, Tensor]) -> None:
        self.spec, self._engine, self._memory, self._caches = transformer.spec, transformer.engine, transformer.memory, transformer.caches
        batch = position_ids.shape[0]
        self.cache = self._caches.take(batch)
        self._positions, self._head = position_ids, head
        self._offset = np.concatenate([position_ids[:, -1], np.zeros(batch, np.int64)])

    def __del__(self) -> None:
        if cache := getattr(self, "cache", None):  # none where there was no memory for it
            self._caches.give_back(cache)

    def step(self, scale: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [R, L, C] → hidden [R, L, C] and logits [R, L, V] float32; R = B at scale 0, else 2B."""
        rows, tokens, _ = x.shape
        cos, sin = self._tables(scale)
        position = np.full(rows, self.cache.length, np.int64)
        cache_in, cache_out = self.cache.bindings(rows)
        hidden = self._memory.empty(x.shape, x.dtype)
        logits = self._memory.empty((rows, tokens, self.spec.codebook_size), np.float32)
        inputs = {
            "x": x,
            "rope_cos": cos.astype(x.dtype, copy=False),
            "rope_sin": sin.astype(x.dtype, copy=False),
            "position": position,
            "length": position + tokens,
            **{name: value[:rows] for name, value in self._head.items()},
            **cache_in,
        }
        self._engine.run(inputs, {"hidden": hidden, "logits": logits, **cache_out})
        self.cache.advance(tokens)
        return hidden, logits

    def _tables(self, scale: int) -> tuple[Float32, Float32]:
        spec = self.spec
        if scale == 0:
            return text_tables(self._positions, spec.head_dim)
        return image_tables(spec.patch_nums[scale], spec.grid, self._offset, spec.head_dim)
