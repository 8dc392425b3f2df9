"""Prompts with what they claim: held-out ones from the sampler, or a user's own file read by the caption grammar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..shapes.captions import caption, parse
from ..shapes.sampler import sample_scene
from ..shapes.scene import Scene, Spec

STREAM = 7_2026  # keeps evaluation scenes apart from every training stream


@dataclass(frozen=True)
class Prompt:
    """A prompt and its claim."""

    text: str
    spec: Spec


def held_out_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Scenes with an attribute combination that training never shows."""
    return [sample_scene(np.random.default_rng([STREAM, seed, k]), held_out=True) for k in range(count)]


def held_out_prompts(count: int, seed: int = 0) -> list[Prompt]:
    """Captions of `held_out_scenes`; the same seed gives the same prompts."""
    scenes = held_out_scenes(count, seed)
    texts = [caption(scene, np.random.default_rng([STREAM, seed, k, 1])) for k, scene in enumerate(scenes)]
    return [Prompt(text, parse(text)) for text in texts]


def own_prompts(lines: Sequence[str]) -> list[Prompt]:
    """A user's prompts; InputError names the first that the grammar cannot read."""
    return [Prompt(line, parse(line)) for line in lines]
