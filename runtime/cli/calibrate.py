"""`hart-edge calibrate`: a quantised bundle from a bundle of floats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..bundle import Bundle, bundled_folder
from ..errors import InputError
from . import export_tools
from .output import console, mebibytes, read_lines, step_progress


def calibrate(
    prompts: Annotated[Path, typer.Option(help="Text file, one prompt a line: what to calibrate with.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle folder to make.")],
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder, fp32 or fp16 [default: the bundled model].")] = None,
    scheme: Annotated[str, typer.Option(help="weight-only, w8a8 or fp8.")] = "w8a8",
    range_: Annotated[str, typer.Option("--range", help="minmax, percentile, entropy or mse.")] = "mse",
    sensitivity: Annotated[
        Path | None, typer.Option(help="File of `hart-edge sensitivity` that says what stays float [default: the pass is run].")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
) -> None:
    """Quantise a bundle to INT8 or FP8, with ranges from real prompts."""
    tools = export_tools.load("run", package="calibration")
    request = tools.Request(scheme, tuple(read_lines(prompts)), range_)
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists already.", "Choose another folder or pass --overwrite.")
    opened = Bundle(bundled_folder() if bundle is None else bundle)
    with step_progress() as progress:
        made = tools.calibrate(opened, output, request, sensitivity, overwrite, progress)
    share = 100 * made.bytes / opened.bytes
    console().print(f"{output}: {made.manifest.precision}, {mebibytes(made.bytes)}, {share:.1f} % of {opened.root.name}", markup=False)
