"""Captions of training scenes, one a line: prompts to calibrate a model of the shapes data set with.

    python -m hart_edge.export.shapes.prompts 32 > prompts.txt

None of them is a held-out combination, which `hart-edge eval` draws. The first lines of a longer list are those of a shorter one.
"""

from __future__ import annotations

import sys

import numpy as np

from .captions import caption
from .sampler import sample_scene

STREAM = 7_2027  # another than training's and evaluation's


def training_prompts(count: int) -> list[str]:
    """The first `count` of the list."""
    return [_prompt(np.random.default_rng([STREAM, k])) for k in range(count)]


def _prompt(generator: np.random.Generator) -> str:
    return caption(sample_scene(generator, held_out=False), generator)


def main() -> None:
    if len(sys.argv) != 2 or not sys.argv[1].isdecimal() or int(sys.argv[1]) < 1:
        raise SystemExit("usage: python -m hart_edge.export.shapes.prompts COUNT > prompts.txt")
    print("\n".join(training_prompts(int(sys.argv[1]))))


if __name__ == "__main__":
    main()
