"""A sheet of generated pictures with their prompts, from a checkpoint folder and the reference model.

    python -m hart_edge.export.train.sample --checkpoint CKPT --out PNG [--prompt TEXT …] [--cfg 3]

Without prompts, captions of held-out scenes are taken.
"""

from __future__ import annotations

import sys
import textwrap
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

import numpy as np
import torch

from hart_edge.runtime.errors import CheckpointError, HartError
from hart_edge.runtime.noise import PhiloxNoise

from ..checkpoint import load_checkpoint
from ..reference.hart import Context, HartReference, Settings
from ..reference.text import TextConditioner
from .data import Shapes, Source
from .plots import figure, save


def generate(
    model: HartReference, text: TextConditioner, prompts: list[str], settings: Settings, *, seed: int, device: torch.device
) -> np.ndarray:
    """[N, H, W, 3] float32 in 0…1; picture i has the seed `seed` + i. The text model runs on the CPU."""
    context = text(prompts)
    context = Context(context.hidden.to(device), context.position_ids.to(device))
    noise = PhiloxNoise([seed + i for i in range(len(prompts))])
    image = model.generate(context, noise, settings)["image"]
    return image.permute(0, 2, 3, 1).float().cpu().numpy()


def held_out_prompts(source: Source, count: int, seed: int) -> list[str]:
    rng = np.random.default_rng([seed, 77])
    return [source.sample(rng, True)[1] for _ in range(count)]


def sheet(pictures: np.ndarray, prompts: list[str], columns: int, out: Path) -> None:
    """Pictures [N, H, W, 3] in rows, each with its prompt below."""
    rows = -(-len(pictures) // columns)
    drawn, axes = figure(2.6 * columns, 3.1 * rows, rows, columns)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, prompt in zip(axes.flat, pictures, prompts, strict=False):
        axis.imshow(picture.clip(0, 1))
        axis.text(0.5, -0.03, textwrap.fill(prompt, 34), transform=axis.transAxes, ha="center", va="top", fontsize=7)
    save(drawn, out)


def run(options: Namespace, source: Source) -> None:
    checkpoint = load_checkpoint(options.checkpoint)
    if checkpoint.text_model is None:
        raise CheckpointError(f"{options.checkpoint} holds no text model.", "Give a folder that train.assemble wrote.")
    device = torch.device(options.device)
    model = checkpoint.reference().to(device)
    text = TextConditioner(checkpoint.text_model, checkpoint.transformer.context_token)
    prompts = options.prompt or held_out_prompts(source, options.count, options.seed)
    settings = Settings(cfg=options.cfg, smooth=options.smooth, top_k=options.top_k, diffusion_steps=options.diffusion_steps)
    started, parts = time.monotonic(), []
    for first in range(0, len(prompts), options.batch):
        part = prompts[first : first + options.batch]
        parts.append(generate(model, text, part, settings, seed=options.seed + first, device=device))
    print(f"{len(prompts)} pictures in {time.monotonic() - started:.1f} s")
    sheet(np.concatenate(parts), prompts, options.columns, options.out)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompt", action="append", help="may be given again")
    parser.add_argument("--count", type=int, default=16, help="held-out captions when no --prompt is given")
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--cfg", type=float, default=4.5)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--diffusion-steps", type=int)
    parser.add_argument("--no-smooth", dest="smooth", action="store_false")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    try:
        run(parser.parse_args(), Shapes())
    except HartError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main()
