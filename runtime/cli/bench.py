"""`hart-edge bench`: time per stage and peak memory of a bundle, and of other ways to compute the same beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..backends import AUTO, candidates
from ..bundle import Bundle, bundled_folder
from ..errors import InputError
from ..files import check_writable
from . import export_tools
from .bench_compare import COMPARED, EAGER, Asked, kernels, parse_batches, report_on
from .bench_plan import show_plans
from .bench_table import table
from .output import complain, console, read_text, write_json
from .sampling import Backend, LowVram
from .tools import SystemPrompt


def bench(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder [default: the bundled model].")] = None,
    runs: Annotated[int, typer.Option("-n", "--runs", help="Counted runs after two warm-ups.")] = 5,
    batch: Annotated[str, typer.Option(help="Pictures at a time; several with commas between them: 1,4,8.")] = "1",
    prompt: Annotated[str, typer.Option(help="What to draw.")] = "a lighthouse at dusk",
    compare: Annotated[
        str | None, typer.Option(help=f"Beside every backend that works here, run the PyTorch reference: one of {', '.join(COMPARED)}.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="The reference's checkpoint [default for the bundled model: `bundled`, its own]; alone: torch-eager.")
    ] = None,
    text_model: Annotated[str | None, typer.Option(help="Text model of the checkpoint, if it lies elsewhere.")] = None,
    system_prompt: SystemPrompt = None,
    backend: Backend = AUTO,
    with_kernels: Annotated[bool, typer.Option("--kernels", help="Also time every CUDA kernel against the card's copy bandwidth.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print the device memory that the backend cuda will take; load nothing.")] = False,
    low_vram: LowVram = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures; - for standard output.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG: stages and pictures per second of all contenders.")] = None,
) -> None:
    """Measure a bundle with its own sampling settings: median seconds per stage, pictures per second, peak memory.

    Contenders take turns, each in its own process. On a GPU the stages are timed in runs of their own, which wait for the end of each.
    """
    batches = parse_batches(batch)
    if runs < 1:
        raise InputError(f"runs is {runs}; expected 1 or more.")
    opened = Bundle(bundled_folder() if bundle is None else bundle, check_files=not plan)
    candidates(backend, low_vram)
    if plan:
        show_plans(opened, backend, batches, low_vram, json_file)
        return
    opened.engine("text_encoder")
    references = _references(compare, checkpoint)
    source = _source(opened, bundle is None, checkpoint, text_model, read_text(system_prompt)) if references else None
    for target in (json_file, plot):
        if target is not None and str(target) != "-":
            check_writable(target)
    plots = export_tools.load("bench_plot") if plot is not None else None
    timed = kernels(opened) if with_kernels else None  # first: without a card it fails before anything was measured

    report: dict[str, Any] = {}
    for report in report_on(Asked(opened, backend, prompt, runs, batches, references, source, low_vram)):
        _show(report, quiet=str(json_file) == "-")
    if timed is not None:
        report["kernels"] = timed
    write_json(json_file, report)
    if plots is not None:
        plots.plot(report, plot)


def _references(compare: str | None, checkpoint: str | None) -> tuple[str, ...]:
    if compare is None:
        return () if checkpoint is None else (EAGER,)
    if compare not in COMPARED:
        raise InputError(f"--compare {compare!r} is unknown; expected one of {', '.join(COMPARED)}.")
    return COMPARED[compare]


def _source(bundle: Bundle, bundled: bool, checkpoint: str | None, text_model: str | None, system_prompt: str | None) -> Any:
    if checkpoint is None and not bundled:
        raise InputError(f"the reference of {bundle.root} needs its checkpoint.", "Name it with --checkpoint.")
    return export_tools.load("bench").source_of(bundle, checkpoint or "bundled", text_model, system_prompt)


def _show(report: dict[str, Any], quiet: bool) -> None:
    """The newest round, and what could not be measured in it."""
    now = report["rounds"][-1]
    for name, reason in now["failed"].items():
        complain("warning", f"{name} was not measured: {reason}")
    for name in now["alone"]:
        complain("warning", f"{name} did not run beside the others; it was measured after them, alone.")
    if not quiet:
        console().print(table(report, now))
