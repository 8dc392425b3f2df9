"""`hart-edge build`: TensorRT engines of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..bundle import Bundle, bundled_folder
from ..trt.sidecar import place_for
from . import export_tools
from .output import complain, console, mebibytes, step_progress


def build(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder [default: the bundled model, with -o].")] = None,
    backend: Annotated[str, typer.Option(help="tensorrt-rtx or tensorrt.")] = "tensorrt-rtx",
    target: Annotated[str | None, typer.Option(help="Architectures, such as sm86,sm89 [default: all that the backend builds for].")] = None,
    precision: Annotated[str | None, typer.Option(help="fp16, int8 or fp8; the bundle must have it [default: the bundle's].")] = None,
    batch: Annotated[int, typer.Option(help="The largest number of pictures at a time.")] = 4,
    plugins: Annotated[
        str, typer.Option(help="Our kernels in place of TensorRT's: none, all, or names such as SwiGlu,AddRmsNorm.")
    ] = "none",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to make [default: BUNDLE/BACKEND, where the engines are looked for].")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing engines.")] = False,
) -> None:
    """Build TensorRT engines ahead of time from a bundle; needs no GPU for tensorrt-rtx."""
    tools = export_tools.load("build", extra="tensorrt" if backend == "tensorrt" else "rtx")
    tools.check_targets(backend, target)
    opened = Bundle(bundled_folder() if bundle is None else bundle)
    folder = place_for(opened.root, backend) if output is None else output
    with step_progress() as progress:
        sidecar = tools.build_bundle(opened, folder, backend, target, precision, batch, plugins, overwrite, progress)
    console().print(_table(sidecar, folder))
    if not all(facts["repeatable"] for facts in sidecar["engines"].values()):
        complain("note", "this system does not let processes repeat their addresses: a second build may differ in some bytes.")


def _table(sidecar: dict[str, Any], folder: Path) -> Table:
    title = f"{folder}: {sidecar['backend']}, {sidecar['precision']}, {' '.join(sidecar['targets'])}, batch 1–{sidecar['batch']}"
    table = Table(title=title, title_justify="left")
    names = ("engine", "size", "layers", "attention", "with lengths", "cache updates", "quantize", "dequantize", "plugins")
    for name in names:
        table.add_column(name, justify="left" if name == "engine" else "right")
    for name, facts in sidecar["engines"].items():
        counted = [facts[key] for key in ("attention", "attention_lengths", "kv_cache_updates", "quantize", "dequantize")]
        plugins = ", ".join(f"{found['nodes']} {plugin}" for plugin, found in facts["plugins"].items())
        table.add_row(name, mebibytes(facts["bytes"]), str(sum(facts["layers"].values())), *map(str, counted), plugins or "0")
    return table
