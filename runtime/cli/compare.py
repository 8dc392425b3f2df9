"""`hart-edge compare`: bundles beside each other and their reference, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..backends import AUTO, check_backend
from ..bundle import Bundle
from ..errors import InputError
from ..files import check_writable, write_bytes
from . import export_tools
from .output import console, mebibytes, read_lines, read_text, step_progress, write_json
from .sampling import Backend
from .tools import SystemPrompt, TextModel


def compare(
    bundles: Annotated[list[Path], typer.Argument(help="Bundle folders of one checkpoint; ratios refer to the first.")],
    checkpoint: Annotated[str, typer.Option(help="The checkpoint they were made from, or `bundled`.")],
    prompts: Annotated[Path, typer.Option(help="Text file, one prompt a line: what is drawn and verified with.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="HTML file to write.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers; - for standard output.")] = None,
    runs: Annotated[int, typer.Option(help="Timed runs of every contender; 0 leaves the times out.")] = 5,
    score: Annotated[int, typer.Option(help="Held-out prompts of the shapes data set that every bundle draws and the judge reads.")] = 0,
    grid: Annotated[int, typer.Option(help="Prompts whose pictures are shown.")] = 6,
    certify: Annotated[bool, typer.Option(help="Write accuracy.json of every bundle from this run.")] = True,
    text_model: TextModel = None,
    system_prompt: SystemPrompt = None,
    backend: Backend = AUTO,
) -> None:
    """Compare bundles in size, memory, time, numerics and pictures; exit 1 when a gate fails."""
    check_backend(backend)
    if grid < 0:
        raise InputError(f"grid is {grid}; expected 0 or more.")
    for path in (output, json_file):
        if path is not None and str(path) != "-":
            check_writable(path)
    lines = tuple(read_lines(prompts))
    opened = tuple(Bundle(folder) for folder in bundles)
    tools = export_tools.load("compare")
    source = export_tools.load("bench").Source(checkpoint, text_model, read_text(system_prompt))
    asked = tools.Asked(opened, source, lines, runs, score, backend)
    with step_progress() as progress:
        facts, drawings = tools.compare(asked, certify, progress)
    page = tools.render(facts, drawings, grid).encode()
    write_bytes(output, page)
    write_json(json_file, facts)
    failed = [name for name, row in facts["bundles"].items() if not row["passed"]]
    if str(json_file) != "-":
        console().print(f"{output}: {len(opened)} bundles, {mebibytes(len(page))}", markup=False)
        console().print(f"gates FAILED: {', '.join(failed)}" if failed else "all gates passed", markup=False)
    if failed:
        raise typer.Exit(1)
