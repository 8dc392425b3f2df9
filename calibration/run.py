"""Bundle to quantised bundle: collect → migrate → ranges → choose → Q/DQ → write. The folder appears complete or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hart_edge.runtime.bundle import CERTIFICATE, MANIFEST, WEIGHTS, Bundle, FileEntry, Manifest
from hart_edge.runtime.errors import InputError
from hart_edge.runtime.files import sha256_of, writable_folder
from hart_edge.runtime.pipeline import Pipeline

from .collect import Collector, Progress, check_bundle
from .graphs import load_graph, open_with, said_before
from .material import Material, graphs_of, open_weights, products_of
from .migrate import choose
from .products import CONV, MATMUL
from .ranges import check_range
from .replay import record
from .schemes import WEIGHT_ONLY, Scheme, Treatment, scheme_of
from .sensitivity import Row, Score, Sensitivity, decide, judged, limits_of, measure, read_choice
from .sites import find_sites
from .write import place, write_weights

RANGE = "mse"
REPLAYED = 16
"""Prompts, of those to calibrate with, that are replayed to judge the whole. Four were too few for the bundled model: their
worst token's cosine was 0.994, that of eight others 0.988."""


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Request:
    """What is asked of calibration.

    Attributes:
        scheme: a name of `SCHEMES`.
        prompts: what to calibrate with, one run each; of the first few the sensitivity pass makes its recording.
        range_: a name of `RANGES`.
    """

    scheme: str
    prompts: tuple[str, ...]
    range_: str = RANGE

    def __post_init__(self) -> None:
        scheme_of(self.scheme)
        check_range(self.range_)
        if not self.prompts:
            raise InputError("no prompts to calibrate with; expected one or more.", "Write one prompt a line.")

    def facts(self) -> dict[str, Any]:
        """For manifests and reports; the prompts as their number and hash."""
        digest = hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()
        return {
            "scheme": self.scheme,
            "range": self.range_,
            "prompts": {"count": len(self.prompts), "sha256": digest},
        }


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch adds up in an order that depends on its threads; the same prompts are to give the same bytes whatever their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def calibrate(
    bundle: Bundle,
    target: Path,
    request: Request,
    choice: Path | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Bundle:
    """Quantise a bundle.

    Args:
        bundle: fp32 or fp16, checked; the quantised one keeps its float type for everything that is not quantised.
        target: bundle folder to make.
        request: how.
        choice: a sensitivity file (`hart-edge sensitivity --json`); without one the pass is run.
        overwrite: replace an existing bundle.
        progress: told what is being done.
    """
    if overwrite and target.exists() and not (target / MANIFEST).is_file():
        raise InputError(f"{target} is no bundle and is not overwritten.", "Choose another folder or remove it yourself.")
    check_bundle(bundle)
    scheme = scheme_of(request.scheme)
    with writable_folder(target, overwrite) as folder:
        material = prepare(bundle, request, progress)
        if choice is None:
            found = sense(bundle, material, request, progress=progress)
            treatments, facts = found.treatments, {"damage": asdict(found.total), "limits": found.limits}
        else:
            treatments, facts = read_choice(choice, scheme, material.groups), {}
        progress("writing", 0, 1)
        _write(bundle, folder, material, treatments)
        section = request.facts() | {
            "floats": bundle.manifest.floats,
            "groups": {group: treatment.name for group, treatment in treatments.items()},
            "folded": _folded(material, treatments),
        }
        _write_manifest(bundle, folder, scheme, section | facts)
    return Bundle(target, check_files=False)


def sensitivity(bundle: Bundle, request: Request, score: int = 0, progress: Progress = no_progress) -> tuple[Sensitivity, dict[str, Any]]:
    """The sensitivity of every group, and what it was found with.

    Args:
        bundle: fp32 or fp16, checked.
        request: how to quantise.
        score: held-out prompts of the shapes data set to draw with every group; 0 for none.
        progress: told what is being done.
    """
    check_bundle(bundle)
    material = prepare(bundle, request, progress)
    found = sense(bundle, material, request, _score(score) if score else None, every=True, progress=progress)
    facts = {"bundle": bundle.root.resolve().name, "bundle_sha256": sha256_of(bundle.root / MANIFEST), "scored": score}
    return found, request.facts() | facts


def _score(count: int) -> Score:
    from hart_edge.export.evaluate import engine_painter, evaluate, held_out_prompts

    prompts = held_out_prompts(count)

    def score(pipe: Pipeline) -> float:
        return evaluate(engine_painter(pipe), prompts, pipe.defaults).shares["all_correct"] or 0.0

    return score


def fallen(section: Mapping[str, Any]) -> list[str]:
    """Groups of a manifest's quantization section that are not treated as their scheme would like."""
    engines = scheme_of(section["scheme"]).engines
    return [group for group, name in section["groups"].items() if name != engines[group.partition(".")[0]].name]


@one_thread()
def prepare(bundle: Bundle, request: Request, progress: Progress = no_progress) -> Material:
    """Collect statistics; where activations are to be rounded, choose the migration and collect distributions after it."""
    scheme = scheme_of(request.scheme)
    graphs = graphs_of(bundle, scheme)
    products = products_of(graphs)
    watched = [product for product in products if product.kind == MATMUL or scheme.engines[product.engine].activations]
    rounded = [product for product in watched if scheme.engines[product.engine].activations]
    peaks = Collector(bundle, graphs, watched, request.prompts).peaks(progress)
    sites = [site for name, graph in graphs.items() for site in find_sites(graph, name, rounded)] if scheme.migrate else []
    progress("migrating", 0, 1)
    with open_weights(bundle) as weights:
        migration = choose(sites, peaks, weights.get_tensor, request.range_)
    histograms = Collector(bundle, graphs, rounded, request.prompts).histograms(peaks, migration.divisors, progress) if rounded else {}
    return Material(bundle, graphs, products, peaks, migration, histograms, request.range_)


def sense(
    bundle: Bundle, material: Material, request: Request, score: Score | None = None, every: bool = False, progress: Progress = no_progress
) -> Sensitivity:
    """The sensitivity pass.

    Args:
        bundle: the float bundle that is recorded.
        material: made of it.
        request: scheme and prompts.
        score: judges pictures of every group; None leaves them out.
        every: measure every group even where the whole keeps its limits at once.
        progress: told what is being done.
    """
    scheme = scheme_of(request.scheme)
    with said_before(), open_with(bundle, {}) as pipe:
        recorded = record(pipe, request.prompts[:REPLAYED])
        float_score = None if score is None else score(pipe)
    with said_before():
        rows: list[Row] = measure(material, scheme, judged(recorded), score, progress) if every else []
        treatments, total, rows = decide(material, scheme, recorded, rows, progress)
    names = {group: treatment.name for group, treatment in treatments.items()}
    return Sensitivity(scheme.name, tuple(rows), names, total, float_score, limits_of(scheme))


def _write(bundle: Bundle, folder: Path, material: Material, treatments: Mapping[str, Treatment]) -> None:
    graphs, tensors = dict(material.graphs), dict[str, Tensor]()
    for name in material.graphs:
        graphs[name], own = material.changed(name, treatments)
        tensors |= own
    placements = write_weights(bundle, folder / WEIGHTS, tensors)
    for name, file in bundle.manifest.engines.items():
        graph = graphs.get(name) or load_graph(bundle, name)
        place(graph, name, placements)
        (folder / file).write_bytes(graph.SerializeToString(deterministic=True))
    for name in bundle.manifest.files:
        if name != CERTIFICATE and not (folder / name).exists():
            shutil.copyfile(bundle.file(name), folder / name)


def _folded(material: Material, treatments: Mapping[str, Treatment]) -> list[str]:
    """Engines with convolutions of stored weights and float activations; of matrix products ONNX Runtime takes the weights as stored."""
    convolutions = {product.engine for product in material.products if product.kind == CONV and treatments[product.group] is WEIGHT_ONLY}
    rounding = {product.engine for product in material.products if treatments[product.group].activations}
    return sorted(convolutions - rounding)


def _write_manifest(bundle: Bundle, folder: Path, scheme: Scheme, section: dict[str, Any]) -> None:
    old = bundle.manifest
    manifest = Manifest(
        model=old.model,
        precision=scheme.precision,
        engines=old.engines,
        files={path.name: FileEntry(path.stat().st_size, sha256_of(path)) for path in sorted(folder.iterdir())},
        text=old.text,
        source=old.source | {"bundle_sha256": sha256_of(bundle.root / MANIFEST)},
        tools=old.tools | {name: version(name) for name in ("onnx", "onnxruntime", "torch", "hart-edge")},
        defaults=old.defaults,
        quantization=section,
    )
    (folder / MANIFEST).write_text(json.dumps(manifest.to_json(), indent=1) + "\n", encoding="utf-8")
