"""What the two training commands share: options, set-up, the run, and errors as one line."""

from __future__ import annotations

import hashlib
import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path

import torch

from hart_edge.runtime.errors import HartError, InputError

from .data import Shapes, Source, Tokenize, default_workers, stream
from .loop import Trainer, train
from .sizes import Size, size_named
from .state import Budget, RunFolder

_SETTINGS = ("size", "batch", "seed", "ema", "lr", "inside")  # what may not change between the commands of one run


def parser(description: str | None, *, minutes: float, batch: int, lr: float, ema: float, warmup: int) -> ArgumentParser:
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="run folder; an existing one is resumed")
    parser.add_argument("--minutes", type=float, default=minutes, help="training time of the whole stage, over all commands")
    parser.add_argument("--session", type=float, default=9.0, help="wall-clock minutes of this command before it saves and ends")
    parser.add_argument("--steps", type=int, help="length of the stage in steps instead of --minutes")
    parser.add_argument("--size", default="small")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--ema", type=float, default=ema)
    parser.add_argument("--warmup", type=int, default=warmup, help="steps until the full learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes that sample scenes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action=BooleanOptionalAction, default=torch.cuda.is_available(), help="torch.compile")
    parser.add_argument("--graphs", action=BooleanOptionalAction, default=torch.cuda.is_available(), help="CUDA graphs")
    parser.add_argument("--reuse", type=int, default=4, help="times a rendered picture is used on average; 1 renders every batch anew")
    parser.add_argument("--inside", type=float, help="share of scenes with one object inside another [default: the data set's]")
    parser.add_argument("--pool", type=int, default=32768, help="pictures kept when --reuse is above 1")
    return parser


def run_stage(
    stage: str,
    options: Namespace,
    source: Source,
    trainer_of: Callable[[Size, torch.device], Trainer],
    *,
    tokenize: Tokenize | None = None,
    pinned: dict[str, str] | None = None,
) -> int:
    """Train, then write the stage's part of a checkpoint; returns the steps done in all.

    Args:
        pinned: more settings that may not change when the run is resumed.
    """
    _check(options)
    torch.backends.cudnn.allow_tf32 = False  # the quantiser stays in float32; everything else is autocast
    torch.backends.cudnn.benchmark = True
    folder = RunFolder(options.out, stage, {key: getattr(options, key) for key in _SETTINGS} | (pinned or {}))
    budget = Budget(options.minutes, options.session, options.steps)
    trainer = trainer_of(size_named(options.size), torch.device(options.device))
    size = options.batch // options.reuse  # new pictures a step
    step = train(
        trainer, lambda start: stream(source, size, options.seed, start=start, workers=options.workers, tokenize=tokenize), folder, budget
    )
    trainer.export(options.out)
    print(f"{stage}: {step} steps, {100 * budget.progress(step):.1f} % of the stage, in {options.out}", flush=True)
    return step


def _check(options: Namespace) -> None:
    for name in ("minutes", "session", "batch", "lr", "warmup"):
        if getattr(options, name) <= 0:
            raise InputError(f"--{name} is {getattr(options, name)}; expected more than 0.")
    if options.reuse < 1 or options.batch % options.reuse:
        raise InputError(f"--reuse is {options.reuse}; expected a divisor of --batch {options.batch}.")
    if options.inside is not None and not 0 <= options.inside <= 1:
        raise InputError(f"--inside is {options.inside}; expected a share between 0 and 1.")
    if options.steps is not None and options.steps < 1:
        raise InputError(f"--steps is {options.steps}; expected 1 or more.")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device is cuda, but torch finds no GPU.", "Pass --device cpu.")


def digest(path: Path) -> str:
    """Short hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def main(parser: ArgumentParser, run: Callable[[Namespace, Source], object]) -> None:
    """Entry point of a stage, on the procedural pictures."""
    try:
        options = parser.parse_args()
        run(options, Shapes(options.inside))
    except HartError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from error
