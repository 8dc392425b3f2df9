"""What the commands share in talking to the user: messages, progress, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..errors import InputError
from ..files import write_bytes


def complain(kind: str, message: str) -> None:
    """One message on standard error, not interpreted as markup and not cut."""
    colour = {"error": "red", "warning": "yellow"}.get(kind, "cyan")
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"{kind}: ", style=f"bold {colour}", end="")
    console.print(message, markup=False)


def console() -> Console:
    """Standard output; wide enough for tables where there is no terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on standard error with steps done and time elapsed."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield progress


@contextmanager
def step_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for work in named steps: call with what is being done, steps done, steps in all."""
    with progress_bar() as bar:
        task = bar.add_task("starting", total=1)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
        bar.update(task, description="done", completed=1, total=1)


def write_json(target: Path | None, content: Any) -> None:
    """To a file, or with `-` to standard output; nothing when no target was given."""
    if target is None:
        return
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    if str(target) == "-":
        sys.stdout.write(text)
    else:
        write_bytes(target, text.encode())


def read_lines(path: Path) -> list[str]:
    """Prompts from a UTF-8 file, one a line, empty lines left out."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}.", "Expected a UTF-8 text file with one prompt a line.") from error
    if not lines:
        raise InputError(f"{path} holds no prompts.", "Write one prompt a line.")
    return lines


def read_text(path: Path | None) -> str | None:
    """A UTF-8 file as it is; None for none."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}.", "Expected a UTF-8 text file.") from error


def mebibytes(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
