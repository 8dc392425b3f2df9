"""The transformer's keys and values: one preallocated buffer per layer, written in place by the engine.

Rows 0…B−1 are conditional, B…2B−1 unconditional. The unconditional context is the same at every position and for
every prompt, so its keys and values are constants of the bundle.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .engine import Array
from .spec import ModelSpec, cache_names


class KVCache:
    """k and v of every layer, [2B, H, cache_length, D]; `length` positions are valid.

    Args:
        spec: sizes.
        batch: images B.
        dtype: of the transformer engine's cache bindings.
        unconditional_k, unconditional_v: [depth, H, D].
    """

    def __init__(self, spec: ModelSpec, batch: int, dtype: np.dtype[Any], unconditional_k: Array, unconditional_v: Array) -> None:
        shape = (2 * batch, spec.heads, spec.cache_length, spec.head_dim)
        self._layers = [(np.zeros(shape, dtype), np.zeros(shape, dtype)) for _ in range(spec.depth)]
        self._unconditional = (unconditional_k, unconditional_v)
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
                buffer[self._batch :, :, : self._context] = constant[layer][None, :, None]

    def advance(self, tokens: int) -> None:
        """Count tokens that the engine has written."""
        if self.length + tokens > self.capacity:
            raise ValueError(f"cache of {self.capacity} positions cannot take {tokens} after {self.length}")
        self.length += tokens

    def bindings(self, rows: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """The first `rows` rows of all buffers as engine inputs and, the same memory, as outputs."""
        inputs: dict[str, Array] = {}
        outputs: dict[str, Array] = {}
        for layer, (k, v) in enumerate(self._layers):
            k_in, v_in, k_out, v_out = cache_names(layer)
            inputs |= {k_in: k[:rows], v_in: v[:rows]}
            outputs |= {k_out: k[:rows], v_out: v[:rows]}
        return inputs, outputs
