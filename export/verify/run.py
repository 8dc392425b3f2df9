"""The two verifications: a bundle against its checkpoint, and everything against a recorded run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hart_edge.runtime.bundle import Bundle
from hart_edge.runtime.errors import EngineError, InputError
from hart_edge.runtime.noise import PhiloxNoise
from hart_edge.runtime.pipeline import Pipeline
from hart_edge.runtime.transformer import Conditioning

from ..checkpoint import Checkpoint, load_recorded_checkpoint
from ..engines import model_spec
from ..exporter import Progress, export_bundle, hash_text, no_progress, open_text
from ..recording import Arrays, Recording, load_recording, run_encoder, run_reference
from ..reference.hart import HartReference, Settings
from ..reference.text import TextConditioner
from . import metrics
from .checks import Report
from .engines import TeacherForced
from .freerun import check_free_running
from .gates import ENGINE, NONE_DIFFERS, RECORDING
from .static import check_files, check_weights

PROMPTS = ("a lighthouse at dusk, oil painting", "two red circles above a blue square")
CHUNK = 2  # prompts at a time: bounds the memory of the reference's tensors
_PICTURES = {"decoded", "image", "roundtrip"}


def verify_bundle(
    bundle: Bundle,
    checkpoint: Checkpoint,
    prompts: Sequence[str] = PROMPTS,
    system_prompt: str | None = None,
    backend: str = "auto",
    progress: Progress = no_progress,
) -> Report:
    """Compare a bundle with the checkpoint it was made from, sampled with the model's own settings.

    Args:
        bundle: opened with check_files=False: damage is reported, not raised.
        checkpoint: the same one that was exported.
        prompts: one run each, seed = position + 1; a bundle without text encoder takes random context tensors instead.
        system_prompt: as given at export.
        backend: which engines run.
        progress: told what is being done.
    """
    if not prompts:
        raise InputError("no prompts to verify with; expected one or more.")
    _check_pair(bundle, system_prompt)
    report = Report(f"{bundle.root.name} ({bundle.manifest.precision}) against {Path(checkpoint.name).name}")
    chunks = [list(prompts[i : i + CHUNK]) for i in range(0, len(prompts), CHUNK)]
    total = len(chunks) + 2
    progress("reading the checkpoint", 0, total)
    model, text = checkpoint.reference(), open_text(checkpoint, system_prompt) if bundle.manifest.text else None
    if bundle.manifest.text and text is None:
        raise InputError(f"bundle {bundle.root} has a text encoder but {checkpoint.name} has no text model.", "Name it with --text-model.")
    if model_spec(model) != bundle.spec:
        raise InputError(
            f"bundle {bundle.root} and checkpoint {checkpoint.name} have different sizes.",
            "Verify with the checkpoint it was exported from.",
        )
    progress("comparing files and weights", 1, total)
    check_files(bundle, report)
    check_weights(bundle, model, text, report)
    try:
        with Pipeline.open(bundle, backend=backend) as pipe:
            report.backend = pipe.backend
            for number, chunk in enumerate(chunks):
                progress(f"running {len(chunk)} of {len(prompts)} prompts", number + 2, total)
                _check_prompts(pipe, model, text, chunk, number * CHUNK + 1, report)
    except EngineError as error:
        report.add("engines", "files", "engine that does not load or run", 1, NONE_DIFFERS, str(error))
    return report


def verify_recording(folder: Path, precision: str = "fp32", backend: str = "auto", progress: Progress = no_progress) -> Report:
    """Compare the reference with a recorded run, and the engines exported from its checkpoint with the recording."""
    checkpoint, call = load_recorded_checkpoint(folder)
    recording = load_recording(folder, call)
    report = Report(f"{folder.name} ({precision}) against its recording")
    model = checkpoint.reference()
    progress("running the reference", 0, 3)
    reference = run_reference(model, recording)
    _check_reference(reference | run_encoder(model, recording), recording.outputs, report)
    with tempfile.TemporaryDirectory() as temporary:
        progress("exporting", 1, 3)
        bundle = export_bundle(checkpoint, Path(temporary) / "bundle", precision)
        check_weights(bundle, model, None, report)
        progress("running the engines", 2, 3)
        with Pipeline.open(bundle, backend=backend) as pipe:
            report.backend = pipe.backend
            recorded = reference | {name: value for name, value in recording.outputs.items() if name in reference}
            TeacherForced(pipe, model, recording, recorded, report).run()
            conditioning = Conditioning(recording.context, recording.position_ids)
            check_free_running(pipe, conditioning, recording, recorded, report)
    return report


def _check_pair(bundle: Bundle, system_prompt: str | None) -> None:
    text = bundle.manifest.text
    if text is not None and text.system_prompt_sha256 != hash_text(system_prompt):
        raise InputError(
            f"bundle {bundle.root} was exported with system prompt {text.system_prompt_sha256}, verified with {hash_text(system_prompt)}.",
            "Pass the same --system-prompt FILE to export and verify.",
        )


def _check_prompts(
    pipe: Pipeline, model: HartReference, text: TextConditioner | None, prompts: list[str], seed: int, report: Report
) -> None:
    """All engine checks for a few prompts."""
    context, positions, own = _conditioning(pipe, model, text, prompts, seed, report)
    noise = PhiloxNoise([seed + j for j in range(len(prompts))])
    recording = Recording(context, positions, noise, Settings.of(pipe.defaults), {})
    reference = run_reference(model, recording)
    TeacherForced(pipe, model, recording, reference, report).run()
    check_free_running(pipe, own, recording, reference, report)


def _conditioning(
    pipe: Pipeline, model: HartReference, text: TextConditioner | None, prompts: list[str], seed: int, report: Report
) -> tuple[Arrays, Arrays, Conditioning]:
    """The reference's context and positions, and the engines' own conditioning for the free run."""
    if text is None:
        config = model.transformer.config
        context = np.random.default_rng(seed).standard_normal((len(prompts), config.context_token, config.context_dim)).astype(np.float32)
        positions = np.tile(np.arange(config.context_token), (len(prompts), 1))
        return context, positions, Conditioning(context, positions)
    tokens = text.tokenize(prompts)
    own = pipe.encode_text(prompts)
    want = text.encode(tokens).numpy()
    positions = tokens.position_ids.numpy()
    gate = ENGINE[pipe.bundle.manifest.precision]["relative error"]
    report.add("tokenizer", "teacher-forced", "positions differing", float(np.sum(own.position_ids != positions)), NONE_DIFFERS)
    report.add(
        "text_encoder", "teacher-forced", "context relative error", metrics.relative_error(pipe.memory.download(own.hidden), want), gate
    )
    return want, positions, own


def _check_reference(reference: Arrays, recorded: Arrays, report: Report) -> None:
    """Every recorded tensor against the reference's."""
    for name, want in recorded.items():
        kind = name.rstrip("0123456789").rstrip("_")
        value = reference.get(name)
        if value is None or value.shape != want.shape:
            report.add("reference", "recording", f"{kind} missing or of another shape", 1, NONE_DIFFERS, name)
        elif want.dtype.kind in "iu":
            report.add("reference", "recording", f"{kind} equal", float(np.mean(value == want)), RECORDING["indices"], name)
        else:
            gate = RECORDING["picture" if name in _PICTURES else "tensor"]
            report.add("reference", "recording", f"{kind} relative error", metrics.relative_error(value, want), gate, name)
