"""`hart-edge warmup`: everything that is compiled on the first picture is compiled now, and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..backends import AUTO, candidates
from ..bundle import Bundle, bundled_folder
from ..pipeline import Pipeline
from ..timing import StageTimes
from .bench_compare import parse_batches
from .engines import ensure_engines
from .output import console, progress_bar
from .sampling import Backend

PROMPT = "a lighthouse at dusk"
Seconds = tuple[float, float]


def warmup(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder [default: the bundled model].")] = None,
    backend: Backend = AUTO,
    batch: Annotated[str, typer.Option(help="Numbers of pictures at a time to be ready for, such as 1,4.")] = "1",
) -> None:
    """Build TensorRT engines that are missing or stale, and compile and keep what a first picture would wait for."""
    batches = parse_batches(batch)
    opened = Bundle(bundled_folder() if bundle is None else bundle)
    candidates(backend, bundle=opened.root)
    ensure_engines(opened, backend, max(batches))
    with Pipeline.open(opened, backend=backend) as pipe:
        seconds = {count: _draw_twice(pipe, count) for count in batches}
        taken = pipe.backend
    console().print(f"{opened.root.name} on {taken}, seconds per call:", markup=False)
    table = Table()
    for name in ("pictures", "first", "second"):
        table.add_column(name, justify="right")
    for count, (first, second) in seconds.items():
        table.add_row(str(count), f"{first:.2f}", f"{second:.2f}")
    console().print(table)


def _draw_twice(pipe: Pipeline, count: int) -> Seconds:
    """Seconds of the first and of the second call; every shape of a generation comes in both."""
    first, second = StageTimes(), StageTimes()
    with progress_bar() as bar:
        task = bar.add_task(f"{count} at a time", total=2 * pipe.spec.scales)
        for number, times in enumerate((first, second)):
            for step in pipe.stream([PROMPT] * count, seeds=list(range(count)), times=times):
                bar.update(task, completed=number * pipe.spec.scales + step.scale + 1)
    return first.total, second.total
