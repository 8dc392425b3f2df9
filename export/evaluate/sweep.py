"""Scores over settings, written to a file after every one, so that an interrupted run goes on where it stopped.

Knows nothing of checkpoints, bundles or how a table looks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hart_edge.runtime.errors import InputError
from hart_edge.runtime.files import write_bytes
from hart_edge.runtime.options import Options

from .pictures import Painter
from .prompts import Prompt, held_out_prompts
from .real import RealPictures
from .run import evaluate, judge, shares

RENDERER = "the renderer's own pictures"
Progress = Callable[[str, int, int], None]  # setting, pictures done, pictures in all


@dataclass(frozen=True)
class Setting:
    """One row to come; without options the renderer's own pictures, the best that can be reached."""

    name: str
    options: Options | None


@dataclass(frozen=True)
class Row:
    """Scores of one setting: its options as a dictionary, shares 0…1 per category, Fréchet distance."""

    setting: str
    options: dict[str, Any] | None
    shares: dict[str, float | None]
    frechet: float | None


@dataclass(frozen=True)
class Model:
    """What is scored.

    Attributes:
        paint: draws a batch.
        size: side of its pictures in pixels.
        own: its own settings, diffusion steps filled in.
        facts: `sha256` of its files, and what to call it.
    """

    paint: Painter
    size: int
    own: Options
    facts: dict[str, str]


def settings_of(own: Options, cfg: Sequence[float], steps: Sequence[int], top_k: Sequence[int]) -> list[Setting]:
    """The renderer, the model's own settings, then one thing changed at a time. InputError for a value out of range."""
    residual, smooth = replace(own, residual=not own.residual), replace(own, smooth=not own.smooth)
    return [
        Setting(RENDERER, None),
        Setting(f"the model's own: {_describe(own)}", own),
        *(Setting(f"cfg {value:g}", replace(own, cfg=value)) for value in cfg),
        *(Setting(f"diffusion steps {value}", replace(own, diffusion_steps=value, residual=True)) for value in steps),
        Setting(_switch(residual.residual, "residual"), residual),
        Setting(_switch(smooth.smooth, "smooth sampling"), smooth),
        *(Setting(f"top-k {value}", replace(own, top_k=value)) for value in top_k),
    ]


class ScoreFile:
    """Rows of one model, prompts and seed, kept in a JSON file; in memory alone without a path.

    Args:
        path: an existing file is gone on with; InputError says what it was made with when that is something else.
    """

    def __init__(self, path: Path | None, model: dict[str, str], prompts: Sequence[Prompt], seed: int) -> None:
        text = "\n".join(prompt.text for prompt in prompts)
        self.path = path
        self.head = {"model": model, "n": len(prompts), "seed": seed, "prompts_sha256": hashlib.sha256(text.encode()).hexdigest()}
        self.rows = [] if path is None or not path.exists() else self._read(path)

    def find(self, setting: Setting) -> Row | None:
        """The setting's row; the scores of equal options under another name will do."""
        options = None if setting.options is None else asdict(setting.options)
        return next((replace(row, setting=setting.name) for row in self.rows if row.options == options), None)

    def add(self, row: Row) -> None:
        """Keep a row, unless it is there, and write the file."""
        if row not in self.rows:
            self.rows.append(row)
            self.write()

    def write(self) -> None:
        if self.path is not None:
            content = self.head | {"rows": [asdict(row) for row in self.rows]}
            write_bytes(self.path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    def _read(self, path: Path) -> list[Row]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            rows = [Row(**row) for row in content["rows"]]
            found, wanted = _facts(content), _facts(self.head)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no score table: {type(error).__name__}: {error}.", "Choose another --json file.") from error
        other = [f"{name} {found[name]}, here {wanted[name]}" for name in wanted if found[name] != wanted[name]]
        if other:
            raise InputError(f"{path} holds another table: {'; '.join(other)}.", "Choose another --json file.")
        return rows


class Sweep:
    """Scores settings on `n` held-out prompts; picture k has the seed `seed` + k.

    Args:
        path: file that keeps the rows; see `ScoreFile`.
    """

    def __init__(self, model: Model, n: int, seed: int, batch: int, path: Path | None) -> None:
        self.model, self.seed, self.batch = model, seed, batch
        self.prompts, self.real = held_out_prompts(n), RealPictures(n, model.size)
        self.file = ScoreFile(path, model.facts, self.prompts, seed)

    def run(self, wanted: Sequence[Setting], progress: Progress) -> Iterator[Row]:
        """The row of every wanted setting, in order; draws for those that the file lacks."""
        count = len(self.prompts)
        for setting in wanted:
            progress(setting.name, 0, count)
            row = self.file.find(setting) or self._score(setting, partial(progress, setting.name))
            self.file.add(row)
            progress(setting.name, count, count)
            yield row

    def _score(self, setting: Setting, progress: Callable[[int, int], None]) -> Row:
        if setting.options is None:
            scores = judge(self.real.of_prompts(), [prompt.spec for prompt in self.prompts])
            return Row(setting.name, None, shares(scores), self.real.floor)
        result = evaluate(self.model.paint, self.prompts, setting.options, self.seed, self.batch, progress, self.real)
        return Row(setting.name, asdict(setting.options), result.shares, result.frechet)


def _describe(own: Options) -> str:
    """Guidance and diffusion steps, and what else is not as published."""
    words = {
        f"cfg {own.cfg:g}": True,
        f"{own.diffusion_steps} steps": own.residual,
        "no residual": not own.residual,
        "no smooth sampling": not own.smooth,
        f"top-k {own.top_k}": own.top_k is not None,
        f"top-p {own.top_p:g}": own.top_p not in (0, 1),
    }
    return ", ".join(word for word, shown in words.items() if shown)


def _switch(on: bool, what: str) -> str:
    return what if on else f"no {what}"


def _facts(head: dict[str, Any]) -> dict[str, Any]:
    """What must agree; the model by its content, wherever it lies."""
    return {"model": head["model"]["sha256"], "n": head["n"], "seed": head["seed"], "prompts": head["prompts_sha256"]}
