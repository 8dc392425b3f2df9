"""Bundle to TensorRT engines: a folder of engine files beside a sidecar that says what they are. It appears complete or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hart_edge.runtime.bundle import QUANTIZED, Bundle
from hart_edge.runtime.errors import InputError
from hart_edge.runtime.files import sha256_of, writable_folder

from . import process
from .backends import BACKENDS, NATIVE, check_targets
from .builder import EngineJob
from .process import BuildJob
from .shapes import dimension_ranges

SIDECAR = "engines.json"
SCHEMA = 1
FP8 = "fp8"
BUILDABLE = ("fp16", *QUANTIZED)
FP8_TARGETS = ("sm89", "sm120", NATIVE)
"""Architectures with FP8 products, of those that the backends build for; `native` is the card of the machine, which TensorRT asks."""
Progress = Callable[[str, int, int], None]  # what is being done, engines done, engines in all


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""


def build_bundle(
    bundle: Bundle,
    target: Path,
    backend: str = "tensorrt-rtx",
    targets: str | None = None,
    precision: str | None = None,
    batch: int = 4,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Build every engine of a bundle.

    Args:
        bundle: a checked bundle: fp16, or a quantised one that was made of it.
        target: folder to make; it holds NAME.engine for every engine and `engines.json`.
        backend: a name of `BACKENDS`.
        targets: architectures separated by commas, such as "sm86,sm89"; None for all that the backend builds for.
        precision: that the bundle must have; None takes any that can be built.
        batch: the largest number of pictures at a time.
        overwrite: replace a folder of engines.
        progress: told what is being done.

    Returns the content of `engines.json`. Two builds of the same bundle with the same tools agree in it but for the engines'
    hashes: TensorRT-RTX 1.7 numbers what varies in an order that changes from build to build. The sizes stay.
    """
    if precision is None:
        precision = bundle.manifest.precision if bundle.manifest.precision in BUILDABLE else BUILDABLE[0]
    _check(bundle, precision, batch)
    chosen = _targets(backend, targets, precision)
    BACKENDS[backend].require()
    if overwrite and target.exists() and not (target / SIDECAR).is_file():
        raise InputError(f"{target} holds no engines and is not overwritten.", "Choose another folder or remove it yourself.")
    with writable_folder(target, overwrite) as folder:
        names = tuple(bundle.manifest.engines)
        jobs = tuple(EngineJob(name, bundle.engine(name).absolute(), folder / f"{name}.engine") for name in names)
        job = BuildJob(backend, chosen, dimension_ranges(bundle.spec, batch), jobs)
        facts = dict(zip(names, _run(job, progress), strict=True))
        sidecar = {
            "schema": SCHEMA,
            "backend": backend,
            "targets": list(chosen),
            "precision": precision,
            "batch": batch,
            "source": {name: entry.sha256 for name, entry in sorted(bundle.manifest.files.items())},
            "tools": {name: version(name) for name in (BACKENDS[backend].module, "onnx", "hart-edge")},
            "engines": {name: _file_facts(folder / f"{name}.engine") | facts[name] for name in names},
        }
        text = json.dumps(sidecar, indent=1) + "\n"
        (folder / SIDECAR).write_text(text, encoding="utf-8")
    return dict(json.loads(text))


def _targets(backend: str, targets: str | None, precision: str) -> tuple[str, ...]:
    """The architectures to build for; FP8 is for those that have it alone."""
    chosen = check_targets(backend, targets)
    if precision != FP8:
        return chosen
    able = tuple(target for target in chosen if target in FP8_TARGETS)
    if not able or (targets is not None and able != chosen):
        raise InputError(
            f"{' '.join(chosen)}: FP8 runs on {', '.join(FP8_TARGETS)} only.", "Name those with --target, or build an INT8 bundle."
        )
    return able


def _check(bundle: Bundle, precision: str, batch: int) -> None:
    if precision not in BUILDABLE:
        raise InputError(f"precision {precision!r} cannot be built; expected one of {', '.join(BUILDABLE)}.")
    if bundle.manifest.precision != precision:
        raise InputError(
            f"bundle {bundle.root} is {bundle.manifest.precision}; expected {precision}.",
            "Export it again with `hart-edge export … --precision fp16`, or quantise that with `hart-edge calibrate`.",
        )
    if bundle.manifest.floats != "fp16":
        raise InputError(
            f"bundle {bundle.root} is {bundle.manifest.precision} with {bundle.manifest.floats} floats; expected fp16.",
            "Quantise the fp16 bundle: `hart-edge calibrate FP16_BUNDLE …`.",
        )
    if batch < 1:
        raise InputError(f"batch is {batch}; expected 1 or more.")


def _run(job: BuildJob, progress: Progress) -> list[dict[str, Any]]:
    facts: list[dict[str, Any]] = []
    progress("starting", 0, len(job.engines))
    for kind, content in process.run(job):
        if kind == "built":
            facts.append(content)
        else:
            progress(content, len(facts), len(job.engines))
    return facts


def _file_facts(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
