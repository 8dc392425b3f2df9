"""Puts a small checkpoint into the package: its certified fp16 bundle, and what restores the checkpoint from it.

    python -m hart_edge.export.ship CHECKPOINT

CHECKPOINT has float16 weights and a text model. Makes `runtime/bundled` and `export/bundled`, anew and only if every gate
passes, the checkpoint comes back bit for bit, and both together stay small enough for a package.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

from hart_edge.runtime.bundle import CERTIFICATE, WEIGHTS, Bundle
from hart_edge.runtime.cli.output import complain, console, step_progress
from hart_edge.runtime.errors import BundleError, CheckpointError, HartError
from hart_edge.runtime.files import writable_folder

from .checkpoint import GENERATION_CONFIG, Checkpoint, load_checkpoint, read_text_weights
from .exporter import Progress, export_bundle, no_progress
from .restore import BUNDLED, PACKAGE, PARTS, REST, State, config_digest, digest, missing, restore, same, save
from .verify import PROMPTS, Report, verify_bundle, write_certificate

LIMIT = 24_000_000  # bytes that bundle and rest may have together
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth"}


def ship(folder: Path, root: Path, limit: int = LIMIT, progress: Progress = no_progress) -> Report:
    """Make `root`/runtime/bundled and `root`/export/bundled, replacing those there; nothing is written when a gate fails.

    Args:
        folder: the checkpoint.
        root: the folder that holds `runtime` and `export`.
        limit: bytes that both may have together; BundleError beyond it.
        progress: told what is being done.

    Returns the verification's report; the caller looks whether it passed.
    """
    checkpoint = load_checkpoint(folder)
    original = _tensors(checkpoint)
    with tempfile.TemporaryDirectory() as temporary:
        bundle_folder, rest, restored = (Path(temporary, name, BUNDLED) for name in ("runtime", "export", "checkpoint"))
        bundle = export_bundle(checkpoint, bundle_folder, "fp16", progress=progress)
        progress("finding what the bundle lacks", 0, 1)
        _write_rest(rest, folder, checkpoint, original, bundle)
        _check_size([bundle_folder, rest], limit)
        progress("restoring the checkpoint", 0, 1)
        restore(bundle_folder, rest, restored)
        _compare(original, load_checkpoint(restored))
        report = _certify(bundle, load_checkpoint(restored), progress)
        _check_size([bundle_folder, rest], limit)
        if report.passed:
            _place(bundle_folder, rest, root)
    return report


def _tensors(checkpoint: Checkpoint) -> State:
    """All weights by part/key; CheckpointError unless every one is float16."""
    if checkpoint.text_model is None:
        raise CheckpointError(f"{checkpoint.name} has no text model.", "Expected llm/, tokenizer/ and a text-model folder.")
    states = (checkpoint.transformer_state, checkpoint.autoencoder_state, read_text_weights(checkpoint.text_model))
    tensors = {f"{part}/{key}": value for part, state in zip(PARTS, states, strict=True) for key, value in state.items()}
    other = [f"{key} {value.dtype}" for key, value in tensors.items() if value.dtype != torch.float16]
    if other:
        raise CheckpointError(
            f"{checkpoint.name}: {len(other)} of {len(tensors)} tensors are not float16, first {other[0]}.",
            "Assemble it without --fp32: python -m hart_edge.export.train.assemble.",
        )
    return tensors


def _write_rest(rest: Path, source: Path, checkpoint: Checkpoint, original: State, bundle: Bundle) -> None:
    """The configuration files in the published layout, and the tensors that the bundle does not give back."""
    for part in PARTS:
        (rest / part).mkdir(parents=True)
    for part in PARTS[:2]:
        shutil.copyfile(source / part / "config.json", rest / part / "config.json")
    if checkpoint.text_model is not None:
        for path in checkpoint.text_model.iterdir():
            if path.is_file() and path.suffix not in _WEIGHTS and not path.name.endswith(".index.json"):
                shutil.copyfile(path, rest / PARTS[2] / path.name)
    if (source / GENERATION_CONFIG).is_file():
        shutil.copyfile(source / GENERATION_CONFIG, rest / GENERATION_CONFIG)
    facts = {"bundle": bundle.manifest.files[WEIGHTS].sha256, "configs": config_digest(rest), "checkpoint": digest(original)}
    save(missing(original, bundle, rest), rest / REST, facts)


def _compare(original: State, restored: Checkpoint) -> None:
    """BundleError names what did not come back bit for bit."""
    state = _tensors(restored)
    wrong = sorted(set(original) ^ set(state))
    wrong += [key for key in original if key in state and not same(original[key], state[key])]
    if wrong:
        raise BundleError(f"{len(wrong)} tensors did not come back from the bundle, first {wrong[0]}.", "This is a fault of hart-edge.")


def _certify(bundle: Bundle, checkpoint: Checkpoint, progress: Progress) -> Report:
    report = verify_bundle(bundle, checkpoint, PROMPTS, progress=progress)
    facts = {"checkpoint": BUNDLED, "prompts": list(PROMPTS), "precision": bundle.manifest.precision, "backend": report.backend}
    write_certificate(report, [bundle.root / CERTIFICATE], bundle, facts)
    return report


def _check_size(folders: list[Path], limit: int) -> None:
    size = bytes_of(*folders)
    if size > limit:
        raise BundleError(f"bundle and rest have {size} bytes together; a package may have {limit}.", "Ship a smaller model.")


def bytes_of(*folders: Path) -> int:
    """Size of all files in the folders."""
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def _place(bundle: Path, rest: Path, root: Path) -> None:
    """Copy both into the package, readable for everybody."""
    with (
        writable_folder(root / "runtime" / BUNDLED, overwrite=True) as runtime_part,
        writable_folder(root / "export" / BUNDLED, overwrite=True) as export_part,
    ):
        for source, target in ((bundle, runtime_part), (rest, export_part)):
            shutil.copytree(source, target, copy_function=shutil.copyfile, dirs_exist_ok=True)
            for path in target.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Folder in the published layout, float16 weights, with a text model.")],
    root: Annotated[Path, typer.Option(help="Folder that holds runtime/ and export/.")] = PACKAGE.parent,
) -> None:
    """Put a checkpoint into the package: runtime/bundled and export/bundled."""
    try:
        with step_progress() as progress:
            report = ship(checkpoint, root, progress=progress)
    except HartError as error:
        complain("error", str(error))
        raise typer.Exit(error.exit_code) from error
    console().print(report.table())
    if not report.passed:
        console().print(f"FAILED: {', '.join(report.failed_stages())}; nothing was written", markup=False)
        raise typer.Exit(1)
    folders = root / "runtime" / BUNDLED, root / "export" / BUNDLED
    console().print(f"{folders[0]} and {folders[1]}: {bytes_of(*folders)} of {LIMIT} bytes", markup=False)


if __name__ == "__main__":
    typer.run(main)
