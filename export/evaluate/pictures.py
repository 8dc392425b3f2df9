"""Pictures to judge: from a bundle's engines, from the PyTorch reference, or the renderer's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from hart_edge.runtime.errors import InputError
from hart_edge.runtime.noise import PhiloxNoise
from hart_edge.runtime.options import Options
from hart_edge.runtime.pipeline import Pipeline

from ..checkpoint import load_checkpoint
from ..exporter import open_text
from ..reference.hart import Context, HartReference, Settings
from ..reference.text import TextConditioner
from ..shapes.render import render
from ..shapes.scene import Scene

Pixels = npt.NDArray[np.uint8]
Painter = Callable[[Sequence[str], Sequence[int], Options], list[Pixels]]


def engine_painter(pipe: Pipeline) -> Painter:
    """Draws with a bundle."""

    def paint(prompts: Sequence[str], seeds: Sequence[int], options: Options) -> list[Pixels]:
        return [np.asarray(image) for image in pipe.generate_batch(prompts, seeds=seeds, options=options)]

    return paint


def open_reference(checkpoint: str) -> tuple[HartReference, TextConditioner, Options]:
    """The reference of a checkpoint, on a GPU when torch finds one, its text model and its own sampling settings."""
    source = load_checkpoint(checkpoint)
    text = open_text(source, None)
    if text is None:
        raise InputError(f"{checkpoint} has no text model.", "Expected llm/, tokenizer/ and a text-model folder.")
    return source.reference().to("cuda" if torch.cuda.is_available() else "cpu"), text, source.options


def reference_painter(model: HartReference, text: TextConditioner) -> Painter:
    """Draws with the reference on the device it is on; same noise as the engines."""
    device = model.transformer.head.weight.device

    def paint(prompts: Sequence[str], seeds: Sequence[int], options: Options) -> list[Pixels]:
        context = text(list(prompts))
        moved = Context(context.hidden.to(device), context.position_ids.to(device))
        return to_pixels(model.generate(moved, PhiloxNoise(seeds), Settings.of(options))["image"])

    return paint


def to_pixels(images: torch.Tensor) -> list[Pixels]:
    """[B, 3, H, W] in 0…1 → rounded [H, W, 3] uint8."""
    levels = (images.permute(0, 2, 3, 1) * 255 + 0.5).clamp(0, 255).to(torch.uint8)
    return list(levels.cpu().numpy())


def rendered(scenes: Sequence[Scene], size: int, chunk: int = 32) -> Iterator[Pixels]:
    """The renderer's pictures of scenes."""
    for start in range(0, len(scenes), chunk):
        yield from to_pixels(render(scenes[start : start + chunk], size))
