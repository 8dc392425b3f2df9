"""`hart-edge eval`: how often pictures of the shapes data set hold what their prompt says."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..backends import AUTO, check_backend
from ..bundle import Bundle, bundled_folder
from ..errors import InputError
from ..files import check_writable
from ..options import Options, override
from ..pipeline import Pipeline
from . import export_tools
from .output import console, progress_bar, read_lines, write_json
from .sampling import Backend, Cfg, DiffusionSteps, Residual, Smooth


def evaluate(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder [default: the bundled model].")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Judge the PyTorch reference of this checkpoint, or of `bundled`, in place of a bundle.")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Held-out prompts to draw.")] = 100,
    prompts: Annotated[Path | None, typer.Option(help="Your own prompts, one a line, in the data set's English.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first picture.")] = 0,
    cfg: Cfg = None,
    smooth: Smooth = None,
    diffusion_steps: DiffusionSteps = None,
    residual: Residual = None,
    backend: Backend = AUTO,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all scores; - for standard output.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet PNG.")] = None,
) -> None:
    """Draw prompts of the shapes data set and read the pictures back: colour, shape, count, relation."""
    if bundle is not None and checkpoint is not None:
        raise InputError("give either a bundle folder or --checkpoint FOLDER, not both.")
    if n < 1:
        raise InputError(f"n is {n}; expected 1 or more.")
    check_backend(backend)
    for path in (json_file, sheet):
        if path is not None and str(path) != "-":
            check_writable(path)
    given = {"cfg": cfg, "smooth": smooth, "diffusion_steps": diffusion_steps, "residual": residual}
    override(Options(), **given)  # refuses bad values before anything is loaded
    tools = export_tools.load("evaluate")
    asked = tools.held_out_prompts(n) if prompts is None else tools.own_prompts(read_lines(prompts))
    with progress_bar() as bar:
        task = bar.add_task("pictures", total=len(asked))
        result, facts = _run(tools, bundle, checkpoint, asked, given, seed, backend, lambda done, total: bar.update(task, completed=done))
    if sheet is not None:
        tools.write_sheet(result, sheet)
    write_json(json_file, result.to_json() | facts)
    if str(json_file) != "-":
        console().print(_table(result, facts))


def _run(
    tools: Any, bundle: Path | None, checkpoint: str | None, asked: Any, given: dict[str, Any], seed: int, backend: str, progress: Any
) -> tuple[Any, dict[str, Any]]:
    """The evaluation, and what is known beside it: the tokenizer's reconstruction when there is a checkpoint."""
    if checkpoint is None:
        with Pipeline.open(Bundle(bundle or bundled_folder()), backend=backend) as pipe:
            return tools.evaluate(tools.engine_painter(pipe), asked, override(pipe.defaults, **given), seed, progress=progress), {
                "backend": pipe.backend
            }
    model, text, defaults = tools.open_reference(checkpoint)
    result = tools.evaluate(tools.reference_painter(model, text), asked, override(defaults, **given), seed, progress=progress)
    return result, {"reconstruction": tools.reconstruct(model)}


def _table(result: Any, facts: dict[str, Any]) -> Table:
    table = Table(title=f"{len(result.scores)} prompts", title_justify="left", show_header=False)
    for name, value in asdict(result.options).items():
        table.add_row(name.replace("_", " "), "default" if value is None else str(value))
    table.add_section()
    for category, share in result.shares.items():
        table.add_row(category.replace("_", " "), "not claimed" if share is None else f"{100 * share:.1f} %")
    if result.frechet is not None:
        table.add_row("Fréchet distance", f"{result.frechet:.4f}")
    for name, value in facts.get("reconstruction", {}).items():
        table.add_row(f"reconstruction {name.replace('_', ' ')}", f"{value:.2f}")
    return table
