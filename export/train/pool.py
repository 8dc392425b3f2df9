"""Prepared examples kept on the device and used more than once: rendering and encoding cost more than a training step.

Not part of the saved state: a resumed run fills its pool again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .data import Batch, merge

Prepare = Callable[[Batch], tuple[Tensor, ...]]
BURST = 32  # batches prepared together: large operations, and the host waits for the device only then


class Pool:
    """The latest N examples of what `prepare` makes of a batch: tensors with the batch in front.

    Args:
        prepare: batch → tensors, on the device.
        capacity: N; 0 keeps nothing, every batch is used once.
    """

    def __init__(self, prepare: Prepare, capacity: int) -> None:
        self.prepare, self.capacity = prepare, capacity
        self.rings: tuple[Tensor, ...] = ()
        self.filled, self.next = 0, 0
        self.waiting: list[Batch] = []

    @torch.no_grad()
    def fill(self, batches: Iterator[Batch], share: float = 1 / 16) -> None:
        """Take batches until a share of the capacity is there."""
        while self.filled < share * self.capacity:
            self._add(self.prepare(merge([next(batches) for _ in range(BURST)])))

    def draw(self, batch: Batch, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Put a batch in, with a delay of up to BURST calls, and take `count` random examples out."""
        if not self.capacity:
            return self.prepare(batch)
        self.waiting.append(batch)
        if len(self.waiting) == BURST or not self.filled:
            self._add(self.prepare(merge(self.waiting)))
            self.waiting = []
        pick = torch.randint(self.filled, (count,), device=self.rings[0].device, generator=generator)
        return tuple(ring[pick] for ring in self.rings)

    def _add(self, tensors: tuple[Tensor, ...]) -> None:
        """Put in, over the oldest."""
        count = len(tensors[0])
        if not self.rings:
            self.rings = tuple(tensor.new_empty(self.capacity, *tensor.shape[1:]) for tensor in tensors)
        place = (torch.arange(count, device=tensors[0].device) + self.next) % self.capacity
        for ring, tensor in zip(self.rings, tensors, strict=True):
            ring[place] = tensor
        self.next = (self.next + count) % self.capacity
        self.filled = min(self.capacity, self.filled + count)
