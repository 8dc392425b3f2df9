"""The renderer's own pictures: what the Fréchet distance is measured to, and the least that it can be."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from .frechet import Features, features, frechet_distance
from .pictures import Pixels, rendered
from .prompts import held_out_scenes

ENOUGH = 200  # pictures below which the distance means little: 112 features
STREAM = 1  # seed of the scenes measured to; prompts are of seed 0, so the two sets are disjoint


class RealPictures:
    """Rendered pictures of `count` held-out scenes, `size` pixels a side, as features; made when first asked for and kept."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size

    def distance(self, pictures: Sequence[Pixels]) -> float | None:
        """Fréchet distance of `pictures`, `count` of them, to these; None below 200 pictures."""
        return None if self.count < ENOUGH else frechet_distance(features(pictures), self._features)

    @cached_property
    def floor(self) -> float | None:
        """The distance of as many rendered pictures of the prompts' scenes; its bias is that of every distance at this count."""
        return None if self.count < ENOUGH else self.distance(self.of_prompts())

    def of_prompts(self) -> list[Pixels]:
        """The renderer's answer to `held_out_prompts(count)`, in order."""
        return list(rendered(held_out_scenes(self.count), self.size))

    @cached_property
    def _features(self) -> Features:
        return features(rendered(held_out_scenes(self.count, STREAM), self.size))
