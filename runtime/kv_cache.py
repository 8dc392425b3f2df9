"""The transformer's keys and values: one preallocated buffer per layer, written in place by the engine.

Rows 0…B−1 are conditional, B…2B−1 unconditional. The unconditional context is the same at every position and for
every prompt, so its keys and values are constants of the bundle.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .engine import Array, Tensor
from .memory import HOST, Memory
from .spec import ModelSpec, cache_names


class KVCache:
    """k and v of every layer, [2B, H, cache_length, D]; `length` positions are valid.

    Args:
        spec: sizes.
        batch: images B.
        dtype: of the transformer engine's cache bindings.
        unconditional_k, unconditional_v: [depth, H, D].
        memory: where the buffers lie.
    """

    def __init__(
        self,
        spec: ModelSpec,
        batch: int,
        dtype: np.dtype[Any],
        unconditional_k: Array,
        unconditional_v: Array,
        memory: Memory = HOST,
    ) -> None:
        shape = (2 * batch, spec.heads, spec.cache_length, spec.head_dim)
        self._layers = [(memory.zeros(shape, dtype), memory.zeros(shape, dtype)) for _ in range(spec.depth)]
        self.batch, self.capacity = batch, spec.cache_length
        self.length = 0
        for layer, pair in enumerate(self._layers):
            for buffer, constant in zip(pair, (unconditional_k, unconditional_v), strict=True):
                heads = [np.tile(head.astype(dtype, copy=False), (spec.context_tokens, 1)) for head in constant[layer]]  # [T, D]
                for row in range(batch, 2 * batch):
                    for number, head in enumerate(heads):
                        memory.write(buffer[row][number][: spec.context_tokens], head)

    @property
    def nbytes(self) -> int:
        return sum(k.nbytes + v.nbytes for k, v in self._layers)

    def reset(self) -> None:
        """Forget everything but the unconditional context, which no engine writes to: scale 0 has the conditional rows only."""
        self.length = 0

    def advance(self, tokens: int) -> None:
        """Count tokens that the engine has written."""
        if self.length + tokens > self.capacity:
            raise ValueError(f"cache of {self.capacity} positions cannot take {tokens} after {self.length}")
        self.length += tokens

    def bindings(self, rows: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The first `rows` rows of all buffers as engine inputs and, the same memory, as outputs."""
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        for layer, (k, v) in enumerate(self._layers):
            k_in, v_in, k_out, v_out = cache_names(layer)
            inputs |= {k_in: k[:rows], v_in: v[:rows]}
            outputs |= {k_out: k[:rows], v_out: v[:rows]}
        return inputs, outputs


class KVCaches:
    """Caches for one run after the other. One that a run has given back serves the next run of as many images, so that the
    unconditional context is written once and not for every picture.

    The last one is kept, on a GPU until its memory is needed; on the host none is: see `Memory.may_keep`.

    Args: as of `KVCache`, without the batch.
    """

    def __init__(
        self, spec: ModelSpec, dtype: np.dtype[Any], unconditional_k: Array, unconditional_v: Array, memory: Memory = HOST
    ) -> None:
        self._spec, self._dtype, self._unconditional, self._memory = spec, dtype, (unconditional_k, unconditional_v), memory
        self._idle: KVCache | None = None
        self._keeps = memory.may_keep(self.drop)

    def take(self, batch: int) -> KVCache:
        """A cache for so many images, with nothing but the unconditional context in it."""
        cache, self._idle = self._idle, None
        if cache is None or cache.batch != batch:
            del cache  # before the new one is allocated
            return KVCache(self._spec, batch, self._dtype, *self._unconditional, self._memory)
        cache.reset()
        return cache

    def give_back(self, cache: KVCache) -> None:
        """Of a run that is over."""
        if self._keeps:
            self._idle = cache

    def drop(self) -> None:
        """Free what is kept. Idempotent."""
        self._idle = None
