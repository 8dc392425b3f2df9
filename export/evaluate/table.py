"""The score table of a model over its sampling settings, as Markdown.

    python -m hart_edge.export.evaluate.table BUNDLE [--n 500] [--json FILE]
    python -m hart_edge.export.evaluate.table --checkpoint CKPT --batch 64

Draws the same held-out prompts with every setting: guidance, diffusion steps, no residual, no smooth sampling, top-k, each
with the rest at the model's own. Shares of right pictures are in per cent over the prompts that claim the category. The
Fréchet distance is given from 200 prompts on; compare it at equal --n only, and with the first row's: two sets of the
renderer's own pictures, the least that can be reached.

With --json every row is written when it is done; the same command goes on where an interrupted one stopped. With
--checkpoint the PyTorch reference draws, on a GPU when torch finds one.
"""

from __future__ import annotations

import hashlib
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hart_edge.runtime.bundle import MANIFEST, Bundle, bundled_folder
from hart_edge.runtime.cli.output import progress_bar
from hart_edge.runtime.errors import HartError, InputError
from hart_edge.runtime.files import check_writable, sha256_of
from hart_edge.runtime.options import Options, check_seed
from hart_edge.runtime.pipeline import Pipeline

from ..checkpoint import resolve
from .pictures import engine_painter, open_reference, reference_painter
from .run import CATEGORIES
from .sweep import Model, Progress, Row, Setting, Sweep, settings_of

CANCELLED = 130


def run(options: Namespace) -> list[Row]:
    """Score every setting and print the table; InputError for options that cannot be used."""
    _check(options)
    with open_model(options.bundle, options.checkpoint) as model:
        wanted = settings_of(model.own, options.cfg, options.steps, options.top_k)
        sweep = Sweep(model, options.n, options.seed, options.batch, options.json)
        with _progress(wanted, options.n) as progress:
            rows = list(sweep.run(wanted, progress))
    print(f"{model.facts['name']}: {options.n} held-out prompts, seed {options.seed}; shares in %\n\n{markdown(rows)}")
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """One line per setting; `-` for what no prompt claims and for a Fréchet distance of too few pictures."""
    columns = ["setting", *(category.replace("_", " ") for category in CATEGORIES), "Fréchet distance"]
    lines = [columns, ["---", *["--:"] * (len(columns) - 1)]]
    for row in rows:
        shares = [_cell(row.shares[category], 100, ".1f") for category in CATEGORIES]
        lines.append([row.setting, *shares, _cell(row.frechet, 1, ".4f")])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@contextmanager
def open_model(bundle: Path | None, checkpoint: str | None) -> Iterator[Model]:
    """A bundle's engines, the bundled one's where none is named, or the reference of a checkpoint."""
    if checkpoint is None:
        opened = Bundle(bundle or bundled_folder())
        facts = {"name": opened.root.resolve().name, "sha256": sha256_of(opened.root / MANIFEST)}
        with Pipeline.open(opened) as pipe:
            yield Model(engine_painter(pipe), pipe.spec.image_size, _own(pipe.defaults, pipe.spec.diffusion_steps), facts)
        return
    model, text, defaults = open_reference(checkpoint)
    facts = {"name": f"reference of {Path(checkpoint).name}", "sha256": _hash_of(resolve(checkpoint, ["llm/*", "tokenizer/*"]))}
    size = model.patch_nums[-1] * model.vae.config.downsample
    yield Model(reference_painter(model, text), size, _own(defaults, model.transformer.config.num_sampling_steps), facts)


def _own(defaults: Options, diffusion_steps: int) -> Options:
    """The model's own settings, its number of diffusion steps filled in."""
    return replace(defaults, diffusion_steps=defaults.diffusion_steps or diffusion_steps)


def _hash_of(checkpoint: Path) -> str:
    """SHA-256 over names and contents of a checkpoint's parts: all files of its subfolders."""
    files = sorted(path for path in checkpoint.glob("*/*") if path.is_file())
    lines = [f"{path.relative_to(checkpoint).as_posix()} {sha256_of(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _check(options: Namespace) -> None:
    if options.bundle is not None and options.checkpoint is not None:
        raise InputError("give either a bundle folder or --checkpoint FOLDER, not both.")
    for name in ("n", "batch"):
        if getattr(options, name) < 1:
            raise InputError(f"{name} is {getattr(options, name)}; expected 1 or more.")
    check_seed(options.seed)
    settings_of(Options(), options.cfg, options.steps, options.top_k)  # refuses bad values before anything is loaded
    if options.json is not None:
        check_writable(options.json)


def _cell(value: float | None, factor: float, form: str) -> str:
    return "-" if value is None else format(factor * value, form)


@contextmanager
def _progress(wanted: Sequence[Setting], n: int) -> Iterator[Progress]:
    """Two bars on standard error: settings, and pictures of the present one."""
    with progress_bar() as bar:
        settings, pictures = bar.add_task("settings", total=len(wanted)), bar.add_task("", total=n)
        done: set[str] = set()

        def tell(name: str, count: int, total: int) -> None:
            if count == total:
                done.add(name)
            bar.update(settings, completed=len(done))
            bar.update(pictures, description=name, completed=count)

        yield tell


def _list_of(kind: Callable[[str], float]) -> Callable[[str], list[float]]:
    """Values separated by commas; none for an empty text."""

    def values(text: str) -> list[float]:
        return [kind(part) for part in text.split(",") if part.strip()]

    values.__name__ = f"list of {kind.__name__}"  # how argparse calls it in its message
    return values


def parser() -> ArgumentParser:
    made = ArgumentParser(
        prog="python -m hart_edge.export.evaluate.table", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    made.add_argument("bundle", type=Path, nargs="?", help="bundle folder [default: the bundled model]")
    made.add_argument("--checkpoint", help="score the PyTorch reference of this checkpoint, or of `bundled`, in place of a bundle")
    made.add_argument("--n", type=int, default=500, help="held-out prompts per setting")
    made.add_argument("--seed", type=int, default=0, help="seed of the first picture")
    made.add_argument("--batch", type=int, default=4, help="pictures at a time; 64 is sensible on a GPU")
    made.add_argument("--cfg", type=_list_of(float), default="0,1.5,3,4.5,6", help="guidance strengths")
    made.add_argument("--steps", type=_list_of(int), default="1,2,4,8,16", help="steps of the residual diffusion")
    made.add_argument("--top-k", type=_list_of(int), default="1,20,100,300", help="codes kept at every scale")
    made.add_argument("--json", type=Path, help="file that keeps the rows, and is gone on with")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        run(parser().parse_args(arguments))
    except HartError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    except KeyboardInterrupt:
        print("cancelled; the same command with --json goes on after the last row that was done.", file=sys.stderr)
        raise SystemExit(CANCELLED) from None


if __name__ == "__main__":
    main()
