"""Bundle to TensorRT engines: a folder of engine files beside a sidecar that says what they are. It appears complete or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hart_edge.runtime.bundle import SIDECAR, Bundle
from hart_edge.runtime.cuda import Device
from hart_edge.runtime.errors import EngineError, InputError
from hart_edge.runtime.files import sha256_of, writable_folder
from hart_edge.runtime.trt.launcher import HOST
from hart_edge.runtime.trt.sidecar import SCHEMA

from . import process
from .backends import BACKENDS, NATIVE, check_precision, check_targets
from .plugins import ALL, NONE, check_plugins
from .shapes import dimension_ranges
from .worker import BuildJob, EngineJob

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
    plugins: str = NONE,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Build every engine of a bundle.

    Args:
        bundle: a checked bundle.
        target: folder to make; it holds NAME.engine for every engine and `engines.json`.
        backend: a name of `BACKENDS`.
        targets: architectures separated by commas, such as "sm86,sm89"; None for all that the backend builds for.
        precision: that the bundle is expected to have, of `backends.PRECISIONS`; None for the one it has.
        batch: the largest number of pictures at a time.
        plugins: operators that are to be TensorRT plugins: "none", "all" that have a place in the bundle's graphs, or names
            of `plugins/graph_ops.py` separated by commas. EngineError when a named one has no place, or when a node falls back
            to its function body.
        overwrite: replace a folder of engines.
        progress: told what is being done.

    Returns the content of `engines.json`. On Linux, where `steady.py` is let, two builds of the same bundle with the same
    install are the same to the byte.
    """
    kind, wanted = check_precision(bundle, precision), check_plugins(plugins)
    chosen, package = check_targets(backend, targets, kind), BACKENDS[backend].package
    if batch < 1:
        raise InputError(f"batch is {batch}; expected 1 or more.")
    package.require()
    if overwrite and target.exists() and not (target / SIDECAR).is_file():
        raise InputError(f"{target} holds no engines and is not overwritten.", "Choose another folder or remove it yourself.")
    with writable_folder(target, overwrite) as folder:
        names = tuple(bundle.manifest.engines)
        jobs = tuple(EngineJob(name, bundle.engine(name).absolute(), folder / f"{name}.engine") for name in names)
        job = BuildJob(backend, chosen, dimension_ranges(bundle.spec, batch), jobs, wanted)
        facts = dict(zip(names, _run(job, progress), strict=True))
        _check_placed(() if plugins == ALL else wanted, facts)
        sidecar = {
            "schema": SCHEMA,
            "backend": backend,
            "module": package.module,
            "targets": list(chosen),
            "capability": Device(host=HOST).info.capability if chosen == (NATIVE,) else None,
            "precision": bundle.manifest.precision,
            "batch": batch,
            "source": {name: entry.sha256 for name, entry in sorted(bundle.manifest.files.items())},
            "tools": {name: version(name) for name in (package.module, "onnx", "hart-edge")},
            "engines": {name: _file_facts(folder / f"{name}.engine") | facts[name] for name in names},
        }
        text = json.dumps(sidecar, indent=1) + "\n"
        (folder / SIDECAR).write_text(text, encoding="utf-8")
    return dict(json.loads(text))


def _check_placed(wanted: tuple[str, ...], facts: dict[str, Any]) -> None:
    """EngineError for an operator that no graph has a place for."""
    placed = {name for engine in facts.values() for name in engine["plugins"]}
    if absent := [name for name in wanted if name not in placed]:
        raise EngineError(
            f"the bundle's graphs have no place for the plugin {absent[0]}; they have {', '.join(sorted(placed)) or 'none'}.",
            "Name others with --plugins, or export the bundle again.",
        )


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
