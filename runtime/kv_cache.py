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
        self._memory = memory
        self._layers = [(memory.zeros(shape, dtype), memory.zeros(shape, dtype)) for _ in range(spec.depth)]
        self._unconditional = (unconditional_k.astype(dtype, copy=False), unconditional_v.astype(dtype, copy=False))
        self._batch, self._context = batch, spec.context_tokens
        self.capacity = spec.cache_length
        self.length = 0
        self.reset()

    @property
    def nbytes(self) -> int:
        return sum(k.nbytes + v.nbytes for k, v in self._layers)

    def reset(self) -> None:
        """Forget everything but the unconditional context."""
        self.length = 0
        for layer, pair in enumerate(self._layers):
            for buffer, constant in zip(pair, self._unconditional, strict=True):
                heads = [np.tile(head, (self._context, 1)) for head in constant[layer]]  # [T, D], T times the same
                for row in range(self._batch, 2 * self._batch):
                    for number, head in enumerate(heads):
                        self._memory.write(buffer[row][number][: self._context], head)

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
