"""What is known of every bundle in a comparison, measured in one run. Knows nothing of HTML."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from hart_edge.runtime.bench import Job, Loader, load_bundle, measure
from hart_edge.runtime.bundle import CERTIFICATE, Bundle
from hart_edge.runtime.certificate import read_certificate
from hart_edge.runtime.errors import InputError
from hart_edge.runtime.files import check_writable
from hart_edge.runtime.pipeline import Pipeline

from ..bench import Source, reference_loader
from ..checkpoint import load_checkpoint
from ..evaluate import engine_painter, evaluate, held_out_prompts
from ..exporter import Progress, no_progress
from ..verify import Report, verify_bundle, write_certificate
from .pictures import Drawings, distances, draw
from .series import series

REFERENCE = "PyTorch"


@dataclass(frozen=True)
class Asked:
    """What to compare.

    Attributes:
        bundles: opened; the first is what ratios refer to.
        source: of the checkpoint that all of them were made from.
        prompts: drawn with seed = position + 1 and verified with.
        runs: timed runs of every contender, 0 for none.
        score: held-out prompts of the shapes data set that every bundle draws and the judge reads, 0 for none.
        backend: which engines run.
    """

    bundles: tuple[Bundle, ...]
    source: Source
    prompts: tuple[str, ...]
    runs: int = 5
    score: int = 0
    backend: str = "auto"

    def __post_init__(self) -> None:
        if not self.bundles:
            raise InputError("no bundles to compare; expected one or more.")
        names = [bundle.root.resolve().name for bundle in self.bundles]
        if len(set(names)) < len(names):
            raise InputError(f"two bundles have the same folder name: {', '.join(sorted(names))}.", "Give them different names.")
        if not self.prompts:
            raise InputError("no prompts to compare with; expected one or more.")
        for name in ("runs", "score"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more.")
        for bundle in self.bundles[1:]:
            if bundle.spec != self.bundles[0].spec:
                raise InputError(f"{bundle.root} and {self.bundles[0].root} are of different models.", "Compare bundles of one checkpoint.")

    @property
    def names(self) -> list[str]:
        """What the bundles are called: their folders' names."""
        return [bundle.root.resolve().name for bundle in self.bundles]


def compare(asked: Asked, certify: bool = True, progress: Progress = no_progress) -> tuple[dict[str, Any], Drawings]:
    """Everything measured, ready for JSON, and the pictures.

    Args:
        asked: what.
        certify: write every bundle's certificate from this run, where its folder can be written.
        progress: told what is being done.
    """
    stages = 2 + 2 * len(asked.bundles)
    checkpoint = load_checkpoint(asked.source.checkpoint, asked.source.text_model)
    progress("drawing with PyTorch", 0, stages)
    model, text = asked.source.open()
    drawings = draw(asked.bundles, asked.names, model, text, asked.prompts, asked.backend, lambda what: progress(what, 1, stages))
    progress("timing", 2, stages)
    timings = _time(asked)
    rows = {}
    for done, (name, bundle) in enumerate(zip(asked.names, asked.bundles, strict=True)):
        progress(f"verifying {name}", 2 + 2 * done, stages)
        report = verify_bundle(Bundle(bundle.root, check_files=False), checkpoint, asked.prompts, asked.source.system_prompt, asked.backend)
        written = certify and _certify(bundle, report, asked)
        progress(f"scoring {name}", 3 + 2 * done, stages)
        rows[name] = _describe(bundle, report, written) | {
            "time": timings["results"].get(name),
            "pictures": distances(drawings.pictures[name], drawings.reference),
            "score": _score(bundle, asked) if asked.score else None,
        }
    return _head(asked) | {
        "reference": {"time": timings["results"].get(REFERENCE)},
        "failed": timings["failed"],
        "alone": timings["alone"],
        "bundles": rows,
    }, drawings


def _time(asked: Asked) -> dict[str, Any]:
    """All bundles and the reference in turn; the first prompt."""
    if not asked.runs:
        return {"results": {}, "failed": {}, "alone": []}
    job = Job(asked.prompts[:1], (1,), asked.bundles[0].defaults)
    loaders = {REFERENCE: reference_loader(asked.source, asked.bundles[0].manifest.floats, False, job)}
    loaders |= {name: Loader(load_bundle, (b.root, asked.backend, job)) for name, b in zip(asked.names, asked.bundles, strict=True)}
    outcome = measure(loaders, asked.runs)
    results = {name: {key: value for key, value in result.to_json().items() if key != "runs"} for name, result in outcome.results.items()}
    return {"results": results, "failed": {name: str(error) for name, error in outcome.failed.items()}, "alone": list(outcome.alone)}


def _certify(bundle: Bundle, report: Report, asked: Asked) -> bool:
    """Whether the certificate was written; the bundle of an install that is not ours to write keeps its own."""
    path = bundle.root / CERTIFICATE
    try:
        check_writable(path)
    except InputError:
        return False
    facts = {"checkpoint": asked.source.checkpoint, "prompts": list(asked.prompts)}
    write_certificate(report, [path], bundle, facts | {"precision": bundle.manifest.precision, "backend": report.backend})
    return True


def _describe(bundle: Bundle, report: Report, certified: bool) -> dict[str, Any]:
    return {
        "precision": bundle.manifest.precision,
        "bytes": bundle.bytes,
        "files": {name: entry.bytes for name, entry in bundle.manifest.files.items()},
        "quantization": bundle.manifest.quantization,
        "backend": report.backend,
        "passed": report.passed,
        "certificate": read_certificate(bundle.root).summary if certified else "not written",
        "gates": [check.to_json() for check in report.worst()],
        "series": series(report.checks, bundle.spec.scales),
    }


def _score(bundle: Bundle, asked: Asked) -> dict[str, float | None]:
    with Pipeline.open(bundle, backend=asked.backend) as pipe:
        return evaluate(engine_painter(pipe), held_out_prompts(asked.score), pipe.defaults).shares


def _head(asked: Asked) -> dict[str, Any]:
    first = asked.bundles[0]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()},
        "tools": {name: version(name) for name in ("hart-edge", "onnxruntime", "numpy", "torch")},
        "checkpoint": asked.source.checkpoint,
        "model": first.spec.to_json(),
        "options": asdict(first.defaults),
        "prompts": list(asked.prompts),
        "runs": asked.runs,
        "scored": asked.score,
    }
