"""`hart-edge export` and `hart-edge verify`: the commands that need PyTorch, loaded only when they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..backends import check_backend
from ..bundle import CERTIFICATE, Bundle
from ..errors import InputError
from ..files import check_writable
from . import export_tools
from .output import console, mebibytes, progress_bar, read_lines

TextModel = Annotated[str | None, typer.Option(help="Folder or hub name of the text model [default: the one inside CHECKPOINT].")]
SystemPrompt = Annotated[Path | None, typer.Option(help="Text file put in front of every prompt; the released weights expect theirs.")]
Precision = Annotated[str, typer.Option(help="fp32 or fp16.")]


def export(
    checkpoint: Annotated[str, typer.Argument(help="Folder in the published layout, or a name on the model hub.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle folder to make.")],
    precision: Precision = "fp32",
    text_model: TextModel = None,
    system_prompt: SystemPrompt = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
) -> None:
    """Turn a HART checkpoint into a bundle of ONNX engines."""
    tools = export_tools.load("exporter")
    text = _read_text(system_prompt)
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists already.", "Choose another folder or pass --overwrite.")
    with _progress() as progress:
        progress("reading the checkpoint", 0, 1)
        source = export_tools.load("checkpoint").load_checkpoint(checkpoint, text_model)
        bundle = tools.export_bundle(source, output, precision, text, overwrite, progress)
    console().print(f"{output}: {len(bundle.manifest.engines)} engines, {precision}, {mebibytes(bundle.bytes)}", markup=False)


def verify(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="The checkpoint it was exported from.")] = None,
    golden: Annotated[Path | None, typer.Option(help="Folder of a recorded run, in place of a bundle.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file, one prompt a line [default: two prompts].")] = None,
    precision: Precision = "fp32",
    text_model: TextModel = None,
    system_prompt: SystemPrompt = None,
    backend: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the report to this file.")] = None,
) -> None:
    """Compare a bundle with its checkpoint, or everything with a recorded run; write accuracy.json; exit 1 on failure."""
    check_backend(backend)
    if (bundle is None) == (golden is None):
        raise InputError("give either a bundle folder or --golden FOLDER.")
    if golden is not None:
        report = _verify_golden(golden, precision, backend, json_file or Path(CERTIFICATE))
    elif bundle is not None and checkpoint is not None:
        report = _verify_bundle(bundle, checkpoint, prompts, text_model, _read_text(system_prompt), backend, json_file)
    else:
        raise InputError(f"bundle {bundle} needs the checkpoint it was exported from.", "Pass --checkpoint FOLDER.")
    console().print(report.table())
    if not report.passed:
        console().print(f"FAILED: {', '.join(report.failed_stages())}", markup=False)
        raise typer.Exit(1)
    console().print("all gates passed")


def _verify_golden(golden: Path, precision: str, backend: str, target: Path) -> Any:
    if not golden.is_dir():
        raise InputError(f"{golden} is no folder.", "Expected the folder of a recorded run.")
    check_writable(target)
    tools = export_tools.load("verify")
    with _progress() as progress:
        report = tools.verify_recording(golden, precision, backend, progress)
    tools.write_certificate(report, [target], facts={"recording": golden.name, "precision": precision, "backend": backend})
    return report


def _verify_bundle(
    folder: Path,
    checkpoint: str,
    prompts: Path | None,
    text_model: str | None,
    system_prompt: str | None,
    backend: str,
    json_file: Path | None,
) -> Any:
    targets = [folder / CERTIFICATE, *([json_file] if json_file else [])]
    bundle = Bundle(folder, check_files=False)
    for target in targets:
        check_writable(target)
    tools = export_tools.load("verify")
    lines = list(tools.PROMPTS) if prompts is None else read_lines(prompts)
    with _progress() as progress:
        progress("reading the checkpoint", 0, 1)
        source = export_tools.load("checkpoint").load_checkpoint(checkpoint, text_model)
        report = tools.verify_bundle(bundle, source, lines, system_prompt, backend, progress)
    facts = {"checkpoint": Path(checkpoint).name, "prompts": lines, "precision": bundle.manifest.precision, "backend": backend}
    tools.write_certificate(report, targets, bundle, facts)
    return report


def _read_text(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}.", "Expected a UTF-8 text file.") from error


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    with progress_bar() as bar:
        task = bar.add_task("starting", total=1)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
        bar.update(task, description="done", completed=1, total=1)
