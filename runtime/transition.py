"""Drives the transition engine: codes of one scale in, f_hat and the next scale's input out."""

from __future__ import annotations

import numpy as np

from .engine import Engine, Tensor
from .memory import HOST, Memory
from .noise import Float32
from .resample import area_matrix, bicubic_matrix
from .spec import ModelSpec


class Transition:
    def __init__(self, spec: ModelSpec, engine: Engine, memory: Memory = HOST) -> None:
        self.spec, self._engine, self._memory = spec, engine, memory

    def initial(self, batch: int) -> Tensor:
        """f_hat before any scale, [B, Z, G, G] float32."""
        return self._memory.zeros((batch, self.spec.latent_channels, self.spec.grid, self.spec.grid), np.float32)

    def step(self, scale: int, h: Float32, f_hat: Tensor) -> tuple[Tensor, Tensor]:
        """h [B, Z, p, p], f_hat [B, Z, G, G] → new f_hat and x of scale + 1, [2B, p'², C] (both halves equal)."""
        spec, side = self.spec, self.spec.patch_nums[scale + 1]
        result = self._memory.empty(f_hat.shape, f_hat.dtype)
        x = self._memory.empty((2 * f_hat.shape[0], side * side, spec.width), self._engine.outputs["x"].dtype)
        inputs: dict[str, Tensor] = {
            "h": h,
            "f_hat": f_hat,
            "up": bicubic_matrix(spec.patch_nums[scale], spec.grid),
            "pool": area_matrix(spec.grid, side),
            "scale": np.array([scale], np.int64),
            "phi": np.array([spec.phi_index[scale]], np.int64),
        }
        self._engine.run(inputs, {"f_hat_next": result, "x": x})
        return result, x
