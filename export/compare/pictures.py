"""Draws the same prompts and seeds with the reference and with every bundle, and says how far the pictures are apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hart_edge.runtime.bundle import Bundle
from hart_edge.runtime.pipeline import Pipeline

from ..evaluate import engine_painter, reference_painter
from ..evaluate.pictures import Painter, Pixels
from ..reference.hart import HartReference
from ..reference.text import TextConditioner
from ..verify import metrics
from .perceptual import gmsd


@dataclass(frozen=True)
class Drawings:
    """Pictures [H, W, 3] uint8 by prompt: the reference's, and each bundle's by name."""

    reference: list[Pixels]
    pictures: Mapping[str, list[Pixels]]


def draw(
    bundles: Sequence[Bundle],
    names: Sequence[str],
    model: HartReference,
    text: TextConditioner,
    prompts: Sequence[str],
    backend: str,
    step: Callable[[str], None],
) -> Drawings:
    """One picture per prompt, seed = position + 1, with the first bundle's settings."""
    options = bundles[0].defaults

    def paint(painter: Painter) -> list[Pixels]:
        return [painter([prompt], [number + 1], options)[0] for number, prompt in enumerate(prompts)]

    reference, pictures = paint(reference_painter(model, text)), {}
    for name, bundle in zip(names, bundles, strict=True):
        step(f"drawing with {name}")
        with Pipeline.open(bundle, backend=backend) as pipe:
            pictures[name] = paint(engine_painter(pipe))
    return Drawings(reference, pictures)


def distances(pictures: Sequence[Pixels], reference: Sequence[Pixels]) -> dict[str, float]:
    """Means over the pictures; equal pictures count as 100 dB."""
    pairs = list(zip(pictures, reference, strict=True))
    return {
        "PSNR dB": float(np.mean([min(100.0, metrics.psnr(a / 255, b / 255)) for a, b in pairs])),
        "SSIM": float(np.mean([metrics.ssim(_planes(a), _planes(b)) for a, b in pairs])),
        "GMSD": float(np.mean([gmsd(a, b) for a, b in pairs])),
    }


def difference(picture: Pixels, reference: Pixels, gain: int = 4) -> Pixels:
    """|a − b| · gain, white where they are equal."""
    error = np.abs(picture.astype(np.int32) - reference.astype(np.int32)) * gain
    return (255 - np.minimum(error, 255)).astype(np.uint8)


def _planes(picture: Pixels) -> np.ndarray:
    """[1, 3, H, W] in 0…1."""
    return picture.transpose(2, 0, 1)[None] / 255.0
