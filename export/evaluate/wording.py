"""What a wrong word costs: how much worse a model predicts a picture's codes when its caption names another shape or colour.

    python -m hart_edge.export.evaluate.wording CKPT [--n 24] [--json FILE]

Teacher forcing on scenes that training shows, two objects each. A word that costs nothing is a word that the transformer does
not act upon, whatever the reason; a score of finished pictures cannot tell that from bad sampling or a bad tokenizer.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.table import Table

from hart_edge.runtime.cli.output import console
from hart_edge.runtime.errors import HartError, InputError
from hart_edge.runtime.files import check_writable

from ..reference.hart import HartReference
from ..reference.text import TextConditioner
from ..shapes.captions import describe
from ..shapes.render import render
from ..shapes.sampler import sample_scene
from ..shapes.scene import COLOURS, SHAPES, Scene, Spec, spec_of
from ..train.quantize import encode
from ..train.sequence import forward
from .pictures import open_reference

RELATIONS = ("inside", "left of", "above")
WORDS = {"shape": SHAPES, "colour": tuple(COLOURS)}
STREAM = 8_2026  # keeps these scenes apart from those of evaluation


@dataclass(frozen=True)
class Cost:
    """Mean cross-entropy over all codes of all scales, in nats: with the right caption, and what one wrong word adds."""

    relation: str
    right: float
    added: dict[str, float]  # "shape of the first" …


@torch.inference_mode()
def costs(model: HartReference, text: TextConditioner, count: int, seed: int = 0) -> Iterator[Cost]:
    """One `Cost` per relation, each over `count` scenes."""
    for number, relation in enumerate(RELATIONS):
        rng = np.random.default_rng([STREAM, seed, number])
        scenes = _scenes(relation, count, rng)
        specs = [spec_of(scene).without_sizes() for scene in scenes]
        measured = _Pictures(model, text, scenes)
        right, added = measured.entropy([describe(spec) for spec in specs]), {}
        for group, name in enumerate(("first", "second")):
            for word in WORDS:
                captions = [describe(_wrong(spec, group, word, rng)) for spec in specs]
                added[f"{word} of the {name}"] = measured.entropy(captions) - right
        yield Cost(relation, right, added)


def _scenes(relation: str, count: int, rng: np.random.Generator) -> list[Scene]:
    """Training scenes of two objects in this relation."""
    found: list[Scene] = []
    while len(found) < count:
        scene = sample_scene(rng)
        if scene.relation == relation and len(scene.items) == 2:
            found.append(scene)
    return found


def _wrong(spec: Spec, group: int, word: str, rng: np.random.Generator) -> Spec:
    """`spec` with another shape or colour of one group."""
    groups = list(spec.groups)
    others = [value for value in WORDS[word] if value != getattr(groups[group], word)]
    groups[group] = replace(groups[group], **{word: others[rng.integers(len(others))]})
    return Spec(tuple(groups), spec.relation)


class _Pictures:
    """Rendered scenes as codes, to be predicted under any captions."""

    def __init__(self, model: HartReference, text: TextConditioner, scenes: Sequence[Scene]) -> None:
        self._model, self._text = model, text
        device = model.transformer.head.weight.device
        size = model.patch_nums[-1] * model.vae.config.downsample
        self._codes = encode(model.vae.quantize, model.vae.encode(render(scenes, size).to(device)))
        self._targets = torch.cat(self._codes.targets, dim=1)

    def entropy(self, captions: Sequence[str]) -> float:
        """Mean cross-entropy of the codes, nats."""
        context = self._text(list(captions))
        device = self._targets.device
        out = forward(self._model.transformer, context.hidden.to(device), context.position_ids.to(device), self._codes.inputs)
        return float(F.cross_entropy(out.logits.transpose(1, 2), self._targets))


def table(rows: Sequence[Cost], title: str) -> Table:
    made = Table("relation", "right caption", *rows[0].added, title=title, caption="nats a code; a wrong word adds")
    for row in rows:
        made.add_row(row.relation, f"{row.right:.2f}", *(f"{value:+.2f}" for value in row.added.values()))
    return made


def run(checkpoint: str, count: int, target: Path | None) -> list[Cost]:
    """Measure, print and write; InputError for options that cannot be used."""
    if count < 1:
        raise InputError(f"--n is {count}; expected 1 or more.")
    if target is not None:
        check_writable(target)
    model, text, _ = open_reference(checkpoint)
    rows = list(costs(model, text, count))
    console().print(table(rows, f"{checkpoint}: {count} scenes each"))
    if target is not None:
        target.write_text(json.dumps([vars(row) for row in rows], indent=1), encoding="utf-8")
    return rows


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of a trained checkpoint, or bundled")
    parser.add_argument("--n", type=int, default=24, help="scenes of each relation")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        run(options.checkpoint, options.n, options.json)
    except HartError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main()
