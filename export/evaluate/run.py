"""Draws prompts, reads the pictures back, and sums up: GenEval-style shares, Fréchet distance, reconstruction."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from hart_edge.runtime.options import Options

from ..shapes.judge import Score, read, score
from ..shapes.scene import Spec
from .pictures import Painter, Pixels
from .prompts import Prompt
from .real import RealPictures

FEW = 150  # pictures read in the time that starting processes takes
CATEGORIES = ("colour", "shape", "count", "relation", "all_correct")
Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


@dataclass
class Evaluation:
    """Shares of right pictures per category, 0…1, over the prompts that claim it; and everything behind them.

    Attributes:
        shares: category → share.
        frechet: distance to as many rendered held-out pictures; None below 200 pictures, where it means little. It falls with
            the number of pictures even where the model stays the same: compare at equal n only.
        floor: the same distance for the renderer's own pictures, the best that can be reached at this n.
        scores: per prompt, in order.
        pictures: the pictures, for a contact sheet; not part of the JSON.
    """

    options: Options
    shares: dict[str, float | None]
    frechet: float | None
    floor: float | None
    prompts: list[Prompt]
    scores: list[Score]
    pictures: list[Pixels] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        rows = [{"prompt": p.text, **asdict(s)} for p, s in zip(self.prompts, self.scores, strict=True)]
        figures = {"shares": self.shares, "frechet": self.frechet, "frechet_floor": self.floor}
        return {"options": asdict(self.options), "n": len(rows), **figures, "prompts": rows}


def evaluate(
    paint: Painter,
    prompts: Sequence[Prompt],
    options: Options,
    seed: int = 0,
    batch: int = 4,
    progress: Progress = no_progress,
    real: RealPictures | None = None,
) -> Evaluation:
    """Draw every prompt once (seed + its position) and judge it.

    Args:
        paint: draws a batch.
        prompts: what to draw and what it claims.
        batch: pictures at a time.
        progress: told how many are done.
        real: what to measure the Fréchet distance to, to share it between calls; None makes as many as there are prompts.
    """
    pictures: list[Pixels] = []
    for start in range(0, len(prompts), batch):
        chunk = prompts[start : start + batch]
        pictures += paint([prompt.text for prompt in chunk], [seed + start + k for k in range(len(chunk))], options)
        progress(len(pictures), len(prompts))
    scores = judge(pictures, [prompt.spec for prompt in prompts])
    real = real or RealPictures(len(pictures), pictures[0].shape[0])
    return Evaluation(options, shares(scores), real.distance(pictures), real.floor, list(prompts), scores, pictures)


def judge(pictures: Sequence[Pixels], specs: Sequence[Spec]) -> list[Score]:
    """Read and score every picture; on all cores where that is worth starting processes."""
    if len(pictures) < FEW:
        return [_judge(picture, spec) for picture, spec in zip(pictures, specs, strict=True)]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_judge, pictures, specs, chunksize=8))


def shares(scores: Sequence[Score]) -> dict[str, float | None]:
    """Share of right pictures per category, over those that claim it; None where none does."""
    result: dict[str, float | None] = {}
    for category in CATEGORIES:
        values = [getattr(s, category) for s in scores if getattr(s, category) is not None]
        result[category] = float(np.mean(values)) if values else None
    return result


def _judge(picture: Pixels, spec: Spec) -> Score:
    return score(read(picture), spec)
