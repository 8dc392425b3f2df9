"""Who runs in `hart-edge bench`, and the report of what they did: the same work for every batch size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..backends import AUTO, CPU, candidates
from ..bench import Job, Loader, Outcome, job_of, load_bundle, measure
from ..bundle import Bundle
from ..errors import InputError
from . import export_tools

EAGER, COMPILED = "torch-eager", "torch-compiled"
COMPARED = {"torch": (EAGER, COMPILED), EAGER: (EAGER,), COMPILED: (COMPILED,)}
"""What `--compare` may name, and the contenders that it stands for."""


@dataclass(frozen=True)
class Asked:
    """What is to be measured.

    Attributes:
        bundle: opened; its sampling settings are taken.
        backend: of the runtime; with "auto" a comparison has every one that works here.
        references: contenders of `export.bench`, none without a comparison.
        source: an `export.bench.Source`, where there are references.
        low_vram: of the runtime.
    """

    bundle: Bundle
    backend: str
    prompt: str
    runs: int
    batches: tuple[int, ...]
    references: tuple[str, ...] = ()
    source: Any = None
    low_vram: bool = False


def parse_batches(text: str) -> tuple[int, ...]:
    """`1,4,8` → the numbers; InputError for anything but whole numbers of 1 or more."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise InputError(f"batch is {text!r}; expected a whole number of 1 or more, or several with commas between them.")
    return tuple(dict.fromkeys(int(part) for part in parts))


def backends(asked: Asked) -> tuple[str, ...]:
    """Of a comparison: the one asked for, or all that `auto` tries; the CPU only where there is no GPU."""
    if asked.backend != AUTO or not asked.references:
        return (asked.backend,)
    found = candidates(AUTO, asked.low_vram, asked.bundle.root)
    return tuple(name for name in found if name != CPU) or found


def report_on(asked: Asked) -> Iterator[dict[str, Any]]:
    """The report, once more after every batch size, each time with that round added.

    Raises the first contender's error where none could be measured.
    """
    tools = export_tools.load("bench") if asked.references else None
    rate = tools.product_rate(asked.runs) if tools else None
    report: dict[str, Any] = {
        "bundle": str(asked.bundle.root),
        "precision": asked.bundle.manifest.precision,
        "prompt": asked.prompt,
        "options": asdict(asked.bundle.defaults),
        "runs": asked.runs,
        "product_rate": rate,
        "rounds": [],
    }
    for batch in asked.batches:
        job = job_of(asked.prompt, batch, asked.bundle.defaults)
        outcome = measure(_loaders(asked, tools, job), asked.runs)
        if not outcome.results:
            raise next(iter(outcome.failed.values()))
        report["rounds"].append(_round(asked, batch, outcome, rate))
        yield report


def _loaders(asked: Asked, tools: Any, job: Job) -> dict[str, Loader]:
    precision = asked.bundle.manifest.floats
    references = {name: tools.reference_loader(asked.source, precision, name == COMPILED, job) for name in asked.references}
    return references | {name: Loader(load_bundle, (asked.bundle.root, name, job, asked.low_vram)) for name in backends(asked)}


def _round(asked: Asked, batch: int, outcome: Outcome, rate: float | None) -> dict[str, Any]:
    """One batch size. flops: the least that a run takes; floor: its seconds at the rate of the large product."""
    flops = next((result.flops for result in outcome.results.values() if result.flops), None)
    return {
        "batch": batch,
        "contenders": {name: result.to_json() for name, result in outcome.results.items()},
        "failed": {name: str(error) for name, error in outcome.failed.items()},
        "alone": list(outcome.alone),
        "against": next((name for name in reversed(asked.references) if name in outcome.results), None),
        "flops": flops,
        "floor": {stage: count / rate for stage, count in flops.items()} if flops and rate else None,
    }


def kernels(bundle: Bundle) -> dict[str, Any]:
    """Every operator's share of the card's copy bandwidth, at the sizes nearest to the bundle's."""
    from hart_edge.plugins import bench  # a tool of the kernels' folder: only for those who ask for it
    from hart_edge.plugins.bench_case import PATCH_NUMS

    sizes = min(PATCH_NUMS, key=lambda side: abs(side - bundle.spec.image_size))
    found: dict[str, Any] = bench.measure(sizes, AUTO, None)
    return found
