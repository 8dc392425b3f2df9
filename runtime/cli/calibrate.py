"""`hart-edge calibrate` and `hart-edge sensitivity`: a quantised bundle from a bundle of floats, and what each part of it costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..bundle import Bundle, bundled_folder
from ..errors import InputError
from ..files import check_writable, write_bytes
from . import export_tools
from .output import complain, console, mebibytes, read_lines, step_progress, write_json

FloatBundle = Annotated[Path | None, typer.Argument(help="Bundle folder, fp32 or fp16 [default: the bundled model].")]
Prompts = Annotated[Path, typer.Option(help="Text file, one prompt a line: what to calibrate with.")]
SchemeName = Annotated[str, typer.Option(help="weight-only, w8a8, w8a8-all or fp8.")]
Range = Annotated[str, typer.Option("--range", help="How ranges are found: minmax, percentile, entropy or mse.")]


def calibrate(
    prompts: Prompts,
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle folder to make.")],
    bundle: FloatBundle = None,
    scheme: SchemeName = "w8a8",
    range_: Range = "mse",
    sensitivity: Annotated[
        Path | None, typer.Option(help="File of `hart-edge sensitivity --json` that says what falls back [default: it is found out].")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
) -> None:
    """Quantise a bundle to INT8 or FP8, with ranges from real prompts."""
    tools = export_tools.load("run", package="calibration")
    request = tools.Request(scheme, tuple(read_lines(prompts)), range_)
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists already.", "Choose another folder or pass --overwrite.")
    opened = Bundle(bundled_folder() if bundle is None else bundle)
    with step_progress() as progress, _said_what_remains():
        made = tools.calibrate(opened, output, request, sensitivity, overwrite, progress)
    share = 100 * made.bytes / opened.bytes
    console().print(f"{output}: {made.manifest.precision}, {mebibytes(made.bytes)}, {share:.1f} % of {opened.root.name}", markup=False)
    console().print(f"fell back: {', '.join(tools.fallen(made.manifest.quantization)) or 'nothing'}", markup=False)


def sensitivity(
    prompts: Prompts,
    bundle: FloatBundle = None,
    scheme: SchemeName = "w8a8",
    range_: Range = "mse",
    score: Annotated[int, typer.Option(help="Draw so many held-out prompts of the shapes data set with every group, and read them.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result, for `calibrate --sensitivity`; - for output.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a PNG.")] = None,
) -> None:
    """Quantise one group of products at a time: logits KL per scale, picture PSNR, score; and what should fall back."""
    tools = export_tools.load("run", package="calibration")
    request = tools.Request(scheme, tuple(read_lines(prompts)), range_)
    if score < 0:
        raise InputError(f"score is {score}; expected 0 (none) or more prompts.")
    for path in (json_file, plot):
        if path is not None and str(path) != "-":
            check_writable(path)
    opened = Bundle(bundled_folder() if bundle is None else bundle)
    with step_progress() as progress, _said_what_remains():
        found, facts = tools.sensitivity(opened, request, score, progress)
    write_json(json_file, found.to_json() | facts)
    if plot is not None:
        write_bytes(plot, export_tools.load("plot", package="calibration").draw(found))
    if str(json_file) != "-":
        console().print(_table(found))


@contextmanager
def _said_what_remains() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        complain("cancelled", "calibration keeps nothing between runs: the same command starts from the beginning.")
        raise


def _table(found: Any) -> Table:
    limits = ", ".join(f"{name} {limit}" for name, limit in found.limits.items())
    table = Table(title=f"{found.scheme}: one group quantised at a time; the whole keeps {limits}", title_justify="left")
    table.add_column("group")
    for name in ("weights", "largest KL", "smallest cosine", "latent error", "picture dB", "all correct", "chosen"):
        table.add_column(name, justify="left" if name == "chosen" else "right")
    for row in found.rows:
        table.add_row(row.group, f"{row.weights:,}", *_figures(row.damage, row.score), found.choice[row.group])
    table.add_section()
    table.add_row("as chosen", "", *_figures(found.total, None), "")
    table.add_row("float", "", *["" for _ in range(4)], "" if found.float_score is None else f"{100 * found.float_score:.1f} %", "")
    return table


def _figures(damage: Any, score: float | None) -> list[str]:
    shown = "" if score is None else f"{100 * score:.1f} %"
    return [f"{max(damage.kl):.5f}", f"{min(damage.cosine):.5f}", f"{damage.latent:.4f}", f"{damage.psnr:.1f}", shown]
