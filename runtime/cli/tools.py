"""`hart-edge export` and `hart-edge verify`: the commands that need PyTorch, loaded only when they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..backends import AUTO, check_backend
from ..bundle import CERTIFICATE, SIDECAR, Bundle, bundled_folder
from ..doctor.gpu import look_at_gpus
from ..errors import InputError
from ..files import check_writable, sha256_of
from ..trt.packages import PACKAGES
from . import export_tools
from .engines import ensure_engines
from .output import complain, console, mebibytes, read_lines, read_text, step_progress
from .sampling import Backend

TextModel = Annotated[str | None, typer.Option(help="Folder or hub name of the text model [default: the one inside CHECKPOINT].")]
SystemPrompt = Annotated[Path | None, typer.Option(help="Text file put in front of every prompt; the released weights expect theirs.")]
Precision = Annotated[str, typer.Option(help="fp32 or fp16.")]

VERIFIED_BATCH = 2
"""Pictures at a time in `export/verify`."""


def export(
    checkpoint: Annotated[str, typer.Argument(help="Folder in the published layout, a name on the model hub, or `bundled`.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle folder to make.")],
    precision: Precision = "fp32",
    text_model: TextModel = None,
    system_prompt: SystemPrompt = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
) -> None:
    """Turn a HART checkpoint into a bundle of ONNX engines."""
    tools = export_tools.load("exporter")
    text = read_text(system_prompt)
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists already.", "Choose another folder or pass --overwrite.")
    with step_progress() as progress:
        progress("reading the checkpoint", 0, 1)
        source = export_tools.load("checkpoint").load_checkpoint(checkpoint, text_model)
        bundle = tools.export_bundle(source, output, precision, text, overwrite, progress)
    console().print(f"{output}: {len(bundle.manifest.engines)} engines, {precision}, {mebibytes(bundle.bytes)}", markup=False)


def verify(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder [default: the bundled model].")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="The checkpoint it was exported from [default for the bundled model: `bundled`, its own].")
    ] = None,
    golden: Annotated[Path | None, typer.Option(help="Folder of a recorded run, in place of a bundle.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file, one prompt a line [default: two prompts].")] = None,
    precision: Precision = "fp32",
    text_model: TextModel = None,
    system_prompt: SystemPrompt = None,
    backend: Backend = AUTO,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the report to this file.")] = None,
) -> None:
    """Compare a bundle with its checkpoint, or everything with a recorded run; write accuracy.json; exit 1 on failure."""
    check_backend(backend)
    if bundle is not None and golden is not None:
        raise InputError("give either a bundle folder or --golden FOLDER, not both.")
    if bundle is not None and checkpoint is None:
        raise InputError(f"bundle {bundle} needs the checkpoint it was exported from.", "Pass --checkpoint FOLDER.")
    if golden is not None:
        report = _verify_golden(golden, precision, backend, json_file or Path(CERTIFICATE))
    else:
        folder = bundled_folder() if bundle is None else bundle
        engines = ensure_engines(Bundle(folder, check_files=backend in PACKAGES), backend, VERIFIED_BATCH)
        targets = [json_file] if json_file else []
        targets += _certificate(bundle) if engines is None else [engines / CERTIFICATE]
        system = read_text(system_prompt)
        report = _verify_bundle(folder, checkpoint or "bundled", prompts, text_model, system, backend, targets, engines)
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
    with step_progress() as progress:
        report = tools.verify_recording(golden, precision, backend, progress)
    tools.write_certificate(report, [target], facts={"recording": golden.name, "precision": precision, "backend": report.backend})
    return report


def _certificate(bundle: Path | None) -> list[Path]:
    """Where the certificate goes: into the bundle; nowhere, with a warning, for the bundled one of an install that is not ours to write."""
    if bundle is not None:
        return [bundle / CERTIFICATE]
    path = bundled_folder() / CERTIFICATE
    try:
        check_writable(path)
    except InputError as error:
        complain("warning", f"{error.message} The result is shown here only, and the installed certificate stays as it is.")
        return []
    return [path]


def _verify_bundle(
    folder: Path,
    checkpoint: str,
    prompts: Path | None,
    text_model: str | None,
    system_prompt: str | None,
    backend: str,
    targets: list[Path],
    engines: Path | None,
) -> Any:
    bundle = Bundle(folder, check_files=False)
    for target in targets:
        check_writable(target)
    tools = export_tools.load("verify")
    lines = list(tools.PROMPTS) if prompts is None else read_lines(prompts)
    with step_progress() as progress:
        progress("reading the checkpoint", 0, 1)
        source = export_tools.load("checkpoint").load_checkpoint(checkpoint, text_model)
        report = tools.verify_bundle(bundle, source, lines, system_prompt, backend, progress)
    facts = {"checkpoint": Path(checkpoint).name, "prompts": lines, "precision": bundle.manifest.precision, "backend": report.backend}
    if engines is not None:
        facts |= {"engines_sha256": sha256_of(engines / SIDECAR), "gpu": _gpu()}
    tools.write_certificate(report, targets, bundle, facts)
    return report


def _gpu() -> dict[str, Any]:
    """The card and its driver, for the certificate of engines that were verified on it."""
    state = look_at_gpus()
    return {"cuda": state.cuda, "cards": [{"name": gpu.name, "capability": gpu.capability} for gpu in state.gpus[:1]]}
