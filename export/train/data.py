"""An endless, seeded stream of packed scenes with captions, sampled in worker processes.

Batch k depends on the seed and on k alone, not on the number of workers: a resumed run continues the same stream.
Knows nothing of models; rendering is left to whoever takes a batch, on that device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

Packed = dict[str, Tensor]
Tokenize = Callable[[Sequence[str]], Tensor]
HELD_OUT_STREAM = 1  # second word of the seed; 0 is the training stream


class Source(Protocol):
    """Where scenes come from. Scenes go back into the source that made them and are not looked into."""

    def sample(self, rng: np.random.Generator, held_out: bool) -> tuple[Any, str]:
        """A scene and its caption."""

    def pack(self, scenes: list[Any]) -> Packed:
        """Scenes as tensors, all with the batch in front."""

    def render(self, packed: Packed, pixels: int) -> Tensor:
        """[B, 3, pixels, pixels] float32 in 0…1, on the packed tensors' device."""

    @property
    def claim_sizes(self) -> tuple[int, ...]:
        """How many values each of a caption's claims can take."""

    def claims(self, caption: str) -> list[int]:
        """What a caption claims: one number below each of `claim_sizes`."""


@dataclass(frozen=True)
class Shapes:
    """The procedural pictures of `hart_edge.export.shapes`.

    inside: share of training scenes with one object inside another; None: the data set's own.
    """

    inside: float | None = None

    def sample(self, rng: np.random.Generator, held_out: bool) -> tuple[Any, str]:
        from ..shapes import captions, sampler

        scene = sampler.sample_scene(rng, held_out, None if held_out else self.inside)
        return scene, captions.caption(scene, rng)

    def pack(self, scenes: list[Any]) -> Packed:
        from ..shapes import render

        return render.pack(scenes)

    def render(self, packed: Packed, pixels: int) -> Tensor:
        from ..shapes import render

        return render.render_packed(packed, size=pixels)

    @property
    def claim_sizes(self) -> tuple[int, ...]:
        from ..shapes.claims import CLAIM_SIZES

        return CLAIM_SIZES

    def claims(self, caption: str) -> list[int]:
        from ..shapes import captions, claims

        return claims.claims_of(captions.parse(caption))


@dataclass(frozen=True)
class Text:
    """Captions as the text encoder learns them: token ids [B, T] and claims [B, K], int64."""

    ids: Tensor
    claims: Tensor


@dataclass(frozen=True)
class Batch:
    """B packed scenes, and their captions if the stream was given a tokenizer."""

    packed: Packed
    captions: list[str]
    text: Text | None

    def to(self, device: torch.device) -> Batch:
        text = None if self.text is None else Text(self.text.ids.to(device), self.text.claims.to(device))
        return Batch({key: value.to(device) for key, value in self.packed.items()}, self.captions, text)


def merge(batches: Sequence[Batch]) -> Batch:
    """Several batches as one."""
    packed = {key: torch.cat([batch.packed[key] for batch in batches]) for key in batches[0].packed}
    texts = [batch.text for batch in batches if batch.text is not None]
    text = Text(torch.cat([t.ids for t in texts]), torch.cat([t.claims for t in texts])) if texts else None
    return Batch(packed, [caption for batch in batches for caption in batch.captions], text)


def make_batch(source: Source, size: int, seed: int, index: int, *, tokenize: Tokenize | None = None, held_out: bool = False) -> Batch:
    """Batch `index` of the stream `seed`."""
    rng = np.random.default_rng([seed, HELD_OUT_STREAM if held_out else 0, index])
    pairs = [source.sample(rng, held_out) for _ in range(size)]
    captions = [caption for _, caption in pairs]
    text = None if tokenize is None else Text(tokenize(captions), torch.tensor([source.claims(caption) for caption in captions]))
    return Batch(source.pack([scene for scene, _ in pairs]), captions, text)


class _Stream(IterableDataset):  # type: ignore[type-arg]
    def __init__(self, source: Source, size: int, seed: int, start: int, tokenize: Tokenize | None) -> None:
        self.source, self.size, self.seed, self.start, self.tokenize = source, size, seed, start, tokenize

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        index = self.start + offset
        while True:
            yield make_batch(self.source, self.size, self.seed, index, tokenize=self.tokenize)
            index += stride


def stream(source: Source, size: int, seed: int, *, start: int = 0, workers: int = 0, tokenize: Tokenize | None = None) -> Iterator[Batch]:
    """Batches start, start+1, … without end.

    Args:
        workers: processes that sample; 0 samples in this one. Their round robin keeps the batches in order.
        tokenize: captions → ids [B, T], run in the workers.
    """
    loader = DataLoader(
        _Stream(source, size, seed, start, tokenize),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers and hasattr(os, "fork") else None,
    )
    return iter(loader)


def default_workers() -> int:
    """All cores but two: one drives the GPU, one is for the system."""
    return max(0, len(os.sched_getaffinity(0)) - 2) if hasattr(os, "sched_getaffinity") else max(0, (os.cpu_count() or 1) - 2)
