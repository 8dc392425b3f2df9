"""Scores the bundled model in fp16 and with some or all of its parts in FP8: what quantising costs in right pictures.

    python tests/fused/score_fp8.py [--n 500] [--backend cuda|cpu] [--json FILE]

The FP8 bundles are those of `fp8_bundle.py`: every product of a part, absmax scales. "lost / won": pictures that the first variant
has right and this one wrong, and the other way. A calibrated bundle that keeps products in
fp16 where that pays is scored with `hart-edge eval BUNDLE`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from fp8_bundle import fp8_bundle
from rich.console import Console
from rich.table import Table

from hart_edge.export.evaluate import RealPictures, engine_painter, evaluate, held_out_prompts
from hart_edge.runtime.bundle import Bundle, bundled_folder
from hart_edge.runtime.pipeline import Pipeline

VARIANTS: dict[str, tuple[str, ...]] = {
    "fp16": (),
    "transformer": ("transformer",),
    "text": ("text",),
    "diffusion": ("diffusion",),
    "all but text": ("transformer", "diffusion"),
    "all": ("transformer", "text", "diffusion"),
}
CALIBRATED_WITH = (
    "two red circles above a blue square",
    "a small green star on a striped ground",
    "three yellow rings left of a purple cross",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    source = Bundle(bundled_folder())
    prompts, real, results = held_out_prompts(asked.n), RealPictures(asked.n, source.spec.image_size), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.variants.split(","):
            parts = VARIANTS[name]
            bundle = fp8_bundle(source, Path(folder) / name, CALIBRATED_WITH, parts) if parts else source
            with Pipeline.open(bundle, backend=asked.backend) as pipe:
                result = evaluate(engine_painter(pipe), prompts, pipe.defaults, real=real)
            right = [score.all_correct for score in result.scores]
            results[name] = {"shares": result.shares, "frechet": result.frechet, "right": right}
            print(name, result.shares, flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(results))
    Console().print(_table(results, asked))


def _table(results: dict, asked: argparse.Namespace) -> Table:
    first = next(iter(results.values()))
    table = Table("FP8", *first["shares"], "Fréchet", "lost / won", title=f"{asked.n} prompts, {asked.backend}")
    for name, result in results.items():
        pairs = list(zip(first["right"], result["right"], strict=True))
        lost, won = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
        shares = (f"{100 * share:.1f}" for share in result["shares"].values())
        table.add_row(name, *shares, "" if result["frechet"] is None else f"{result['frechet']:.4f}", f"{lost} / {won}")
    return table


if __name__ == "__main__":
    main()
