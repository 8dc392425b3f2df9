"""`hart-edge bench`: time per stage and peak memory of a bundle, and of the PyTorch reference beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..backends import AUTO, check_backend
from ..bench import Loader, Measurement, job_of, load_bundle, measure
from ..bundle import Bundle, bundled_folder
from ..errors import InputError
from . import export_tools
from .output import console, mebibytes, write_json
from .sampling import Backend


def bench(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder [default: the bundled model].")] = None,
    runs: Annotated[int, typer.Option("-n", "--runs", help="Counted runs after one warm-up.")] = 5,
    batch: Annotated[int, typer.Option(help="Pictures at a time.")] = 1,
    prompt: Annotated[str, typer.Option(help="What to draw.")] = "a lighthouse at dusk",
    checkpoint: Annotated[
        str | None, typer.Option(help="Also run the PyTorch reference of this checkpoint, or of `bundled`; show ratios.")
    ] = None,
    text_model: Annotated[str | None, typer.Option(help="Text model of the checkpoint, if it lies elsewhere.")] = None,
    backend: Backend = AUTO,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures; - for standard output.")] = None,
) -> None:
    """Measure a bundle with its own sampling settings: median seconds per stage, tokens per second, peak memory.

    Contenders take turns, each in its own process.
    """
    if runs < 1 or batch < 1:
        raise InputError(f"runs is {runs} and batch is {batch}; expected 1 or more of each.")
    check_backend(backend)
    bundle = bundled_folder() if bundle is None else bundle
    opened = Bundle(bundle)
    opened.engine("text_encoder")
    job = job_of(prompt, batch, opened.defaults)
    contenders = {"runtime": Loader(load_bundle, (bundle, backend, job))}
    if checkpoint is not None:
        contenders["reference"] = Loader(export_tools.load("bench").load_reference, (checkpoint, text_model, job))
    results = measure(contenders, runs)
    write_json(json_file, {name: result.to_json() for name, result in results.items()})
    if str(json_file) != "-":
        console().print(_table(results, f"{bundle}: median of {runs}, batch {batch}"))


def _table(results: dict[str, Measurement], title: str) -> Table:
    runtime, reference = results["runtime"], results.get("reference")
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("runtime", *(("reference", "reference / runtime") if reference else ())):
        table.add_column(name, justify="right")
    for stage, seconds in runtime.stages.items():
        table.add_row(stage, *_row(seconds, reference.stages.get(stage) if reference else None))
    table.add_section()
    table.add_row("all stages", *_row(runtime.seconds, reference.seconds if reference else None))
    for label, values in (
        ("load", [f"{m.load_seconds:.2f} s" for m in results.values()]),
        ("backend", [m.backend for m in results.values()]),
        ("image tokens / s", [f"{m.tokens / m.seconds:.0f}" for m in results.values()]),
        ("peak memory", [mebibytes(m.peak_memory_bytes) for m in results.values()]),
    ):
        table.add_row(label, *values)
    return table


def _row(runtime: float, reference: float | None) -> list[str]:
    cells = [f"{runtime * 1e3:.1f} ms"]
    if reference is not None:
        cells += [f"{reference * 1e3:.1f} ms", f"{reference / runtime:.2f}"]
    return cells
