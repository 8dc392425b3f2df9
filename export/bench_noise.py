"""Noise that is made once and stays on the device: with the same seeds every run draws the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hart_edge.runtime.noise import Noise, Shape


class KeptNoise:
    """The reference takes it in place of a `Noise`; shapes are (rows, columns), results float32 tensors.

    Attributes:
        bytes: what is kept so far.
    """

    def __init__(self, noise: Noise, device: str) -> None:
        self._noise, self._device = noise, device
        self._kept: dict[tuple[object, ...], Tensor] = {}
        self.bytes = 0

    def token(self, image: int, scale: int, shape: Shape) -> Tensor:
        return self._once("token", self._noise.token, image, scale, shape)

    def smooth(self, image: int, scale: int, shape: Shape) -> Tensor:
        return self._once("smooth", self._noise.smooth, image, scale, shape)

    def diffusion_init(self, image: int, shape: Shape) -> Tensor:
        return self._once("diffusion_init", self._noise.diffusion_init, image, shape)

    def diffusion_step(self, image: int, step: int, shape: Shape) -> Tensor:
        return self._once("diffusion_step", self._noise.diffusion_step, image, step, shape)

    def _once(self, kind: str, draw: Callable[..., np.ndarray], *arguments: object) -> Tensor:
        key = (kind, *arguments)
        if key not in self._kept:
            self._kept[key] = torch.from_numpy(draw(*arguments)).to(self._device)
            self.bytes += self._kept[key].nbytes
        return self._kept[key]
