"""Checkpoint to bundle: traces every engine, writes the weights once, hashes everything, moves it into place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from hart_edge.runtime.bundle import FLOATS, MANIFEST, WEIGHTS, Bundle, FileEntry, Manifest, TextSpec
from hart_edge.runtime.errors import CheckpointError, InputError
from hart_edge.runtime.files import sha256_of, writable_folder

from .checkpoint import Checkpoint
from .engines import constants, engine_builders, model_spec, trace_of
from .graph import externalise, save
from .reference.hart import HartReference
from .reference.text import TextConditioner
from .trace import trace
from .weights import TensorFact, WeightsWriter

TOKENIZER = "tokenizer.json"
Progress = Callable[[str, int, int], None]  # what is being done, steps done, steps in all


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""


def export_bundle(
    checkpoint: Checkpoint,
    target: Path,
    precision: str = "fp32",
    system_prompt: str | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Bundle:
    """Export a checkpoint.

    Args:
        checkpoint: from `load_checkpoint`; without a text model the bundle takes context tensors, not prompts.
        target: bundle folder to make; it appears complete or not at all.
        precision: "fp32" or "fp16".
        system_prompt: text that the released weights were trained with in front of every prompt; None for none.
        overwrite: replace an existing folder.
        progress: told what is being done.
    """
    if precision not in FLOATS:
        raise InputError(f"precision {precision!r} is unknown; expected one of {', '.join(FLOATS)}.")
    if overwrite and target.exists() and not (target / MANIFEST).is_file():
        raise InputError(f"{target} is no bundle and is not overwritten.", "Choose another folder or remove it yourself.")
    with writable_folder(target, overwrite) as folder:
        progress("reading the checkpoint", 0, 1)
        model = checkpoint.reference()
        text = open_text(checkpoint, system_prompt)
        check_text_width(model, text)
        engines = _write_engines(folder, model, text, precision, progress)
        if text is not None:
            _write_tokenizer(folder, text)
        manifest = Manifest(
            model=model_spec(model),
            precision=precision,
            engines=engines,
            files=_hash_files(folder, progress),
            text=None if text is None else TextSpec(text.tokenizer.pad_token_id, hash_text(system_prompt)),
            source={"checkpoint": Path(checkpoint.name).name},
            defaults=checkpoint.defaults,
            tools={name: version(name) for name in ("torch", "onnx", "onnxscript", "transformers", "onnxruntime", "hart-edge")},
        )
        (folder / MANIFEST).write_text(json.dumps(manifest.to_json(), indent=1) + "\n", encoding="utf-8")
    return Bundle(target, check_files=False)


def open_text(checkpoint: Checkpoint, system_prompt: str | None) -> TextConditioner | None:
    """The checkpoint's text model, or None when it has none."""
    if checkpoint.text_model is None:
        if system_prompt:
            raise InputError("a system prompt was given but the checkpoint has no text model.", "Name one with --text-model.")
        return None
    return TextConditioner(checkpoint.text_model, checkpoint.transformer.context_token, system_prompt)


def check_text_width(model: HartReference, text: TextConditioner | None) -> None:
    want = model.transformer.config.context_dim
    if text is not None and text.model.config.hidden_size != want:
        raise CheckpointError(
            f"the text model is {text.model.config.hidden_size} wide; the transformer expects {want}.",
            "Give the text model it was trained with.",
        )


def _write_engines(folder: Path, model: HartReference, text: TextConditioner | None, precision: str, progress: Progress) -> dict[str, str]:
    """Build, write and trace one module at a time, so that no more than one is in memory beside the reference."""
    spec, builders, extra = model_spec(model), engine_builders(model, text, precision), constants(model, precision)
    progress("laying out the weights", 0, len(builders))
    facts = {name: TensorFact.of(tensor) for name, tensor in extra.items()}
    for name, build in builders.items():
        facts |= {f"{name}.{key}": TensorFact.of(value) for key, value in build().state_dict().items()}
    with WeightsWriter(folder / WEIGHTS, facts) as writer:
        writer.write(extra.items())
        for done, (name, build) in enumerate(builders.items()):
            progress(f"tracing {name}", done, len(builders))
            module = build()
            writer.write((f"{name}.{key}", value) for key, value in module.state_dict().items())
            graph = trace(module, trace_of(name, spec, precision))
            externalise(graph, writer.placements, f"{name}.", WEIGHTS)
            save(graph, folder / f"{name}.onnx")
    return {name: f"{name}.onnx" for name in builders}


def _write_tokenizer(folder: Path, text: TextConditioner) -> None:
    """The tokenizer as one `tokenizer.json`, whatever files it came from."""
    text.tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))


def _hash_files(folder: Path, progress: Progress) -> dict[str, FileEntry]:
    progress("hashing", 1, 1)
    return {path.name: FileEntry(path.stat().st_size, sha256_of(path)) for path in sorted(folder.iterdir())}


def hash_text(text: str | None) -> str | None:
    """SHA-256 of a system prompt as the manifest records it; None for none."""
    return hashlib.sha256(text.encode()).hexdigest() if text else None
