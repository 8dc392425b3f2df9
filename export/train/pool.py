"""Encoded pictures kept on the device and used more than once: encoding costs as much as a third of a training step.

Holds the latest N latents with their caption tokens. Not part of the saved state: a resumed run fills it again.
"""

from __future__ import annotations

import torch
from torch import Tensor


class LatentPool:
    """Ring of latents [N, Z, G, G] and ids [N, T]."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.latents: Tensor | None = None
        self.ids: Tensor | None = None
        self.filled, self.next = 0, 0

    def add(self, latents: Tensor, ids: Tensor) -> None:
        """Put in [B, Z, G, G] and [B, T], over the oldest."""
        if self.latents is None or self.ids is None:
            self.latents = latents.new_empty(self.capacity, *latents.shape[1:])
            self.ids = ids.new_empty(self.capacity, *ids.shape[1:])
        place = (torch.arange(len(latents), device=latents.device) + self.next) % self.capacity
        self.latents[place], self.ids[place] = latents, ids
        self.next = (self.next + len(latents)) % self.capacity
        self.filled = min(self.capacity, self.filled + len(latents))

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` random members."""
        if self.latents is None or self.ids is None:
            raise RuntimeError("draw from an empty pool: add pictures first")
        pick = torch.randint(self.filled, (count,), device=self.latents.device, generator=generator)
        return self.latents[pick], self.ids[pick]
