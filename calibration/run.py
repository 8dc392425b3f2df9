"""Bundle to quantised bundle: collect → ranges → Q/DQ → write. The folder appears complete or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onnx import ModelProto
from safetensors import safe_open

from hart_edge.runtime.bundle import CERTIFICATE, MANIFEST, WEIGHTS, Bundle, FileEntry, Manifest
from hart_edge.runtime.errors import InputError
from hart_edge.runtime.files import sha256_of, writable_folder

from .collect import Collector, Key, Progress, check_bundle
from .graphs import load_graph
from .products import Product, find_products, groups_of
from .qdq import Insertion, insert
from .quantized import Quantized, quantize
from .ranges import RANGES, check_range
from .schemes import Scheme, Treatment, scheme_of
from .statistics import Histogram
from .write import place, write_weights

RANGE = "mse"


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""


def calibrate(
    bundle: Bundle,
    target: Path,
    prompts: Sequence[str],
    scheme: str = "w8a8",
    range_: str = RANGE,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Bundle:
    """Quantise a bundle.

    Args:
        bundle: fp32 or fp16, checked; the quantised one keeps its float type for everything that is not quantised.
        target: bundle folder to make.
        prompts: what to calibrate with, one run each.
        scheme: a name of `SCHEMES`.
        range_: a name of `RANGES`.
        overwrite: replace an existing bundle.
        progress: told what is being done.
    """
    chosen = scheme_of(scheme)
    check_range(range_)
    check_bundle(bundle)
    if not prompts:
        raise InputError("no prompts to calibrate with; expected one or more.")
    if overwrite and target.exists() and not (target / MANIFEST).is_file():
        raise InputError(f"{target} is no bundle and is not overwritten.", "Choose another folder or remove it yourself.")
    with writable_folder(target, overwrite) as folder:
        graphs = {name: load_graph(bundle, name) for name in chosen.engines if name in bundle.manifest.engines}
        products = [product for name, graph in graphs.items() for product in find_products(graph, name)]
        histograms = _collect(bundle, graphs, products, prompts, progress)
        treatments = {group: chosen.treatment for group in groups_of(products)}
        numbers = _quantize(bundle, products, treatments, histograms, range_)
        progress("writing", 0, 1)
        _write(bundle, folder, graphs, products, treatments, numbers)
        facts = {
            "scheme": chosen.name,
            "floats": bundle.manifest.floats,
            "groups": {group: treatment.name for group, treatment in treatments.items()},
            "range": range_,
            "prompts": {"count": len(prompts), "sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest()},
        }
        _write_manifest(bundle, folder, chosen, facts)
    return Bundle(target, check_files=False)


def _collect(
    bundle: Bundle, graphs: Mapping[str, ModelProto], products: Sequence[Product], prompts: Sequence[str], progress: Progress
) -> dict[Key, Histogram]:
    collector = Collector(bundle, graphs, products, prompts)
    peaks = collector.peaks(progress)
    return collector.histograms(peaks, {}, progress)


def _quantize(
    bundle: Bundle, products: Sequence[Product], treatments: Mapping[str, Treatment], histograms: Mapping[Key, Histogram], range_: str
) -> dict[str, Quantized]:
    numbers, search = {}, RANGES[range_]
    with safe_open(bundle.file(WEIGHTS), framework="pt") as weights:
        for product in products:
            treatment = treatments[product.group]
            if treatment.weight is None:
                continue
            ranges = []
            for tensor in (product.source, product.output):
                histogram = histograms.get((product.engine, tensor)) if treatment.activations else None
                ranges.append(None if histogram is None else search(histogram, treatment.weight))
            numbers[product.name] = quantize(product, weights.get_tensor(product.name), treatment, ranges[0], ranges[1])
    return numbers


def _write(
    bundle: Bundle,
    folder: Path,
    graphs: Mapping[str, ModelProto],
    products: Sequence[Product],
    treatments: Mapping[str, Treatment],
    numbers: Mapping[str, Quantized],
) -> None:
    changed = {key: value for name, quantized in numbers.items() for key, value in quantized.tensors(name).items()}
    placements = write_weights(bundle, folder / WEIGHTS, changed)
    for name in bundle.manifest.engines:
        graph = graphs.get(name) or load_graph(bundle, name)
        own = [product for product in products if product.engine == name and product.name in numbers]
        if own:
            insert(graph, {p.weight: Insertion(p, treatments[p.group], numbers[p.name]) for p in own})
        place(graph, name, placements)
        (folder / bundle.manifest.engines[name]).write_bytes(graph.SerializeToString(deterministic=True))
    for name in bundle.manifest.files:
        if not (folder / name).exists() and name != CERTIFICATE:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.file(name), folder / name)


def _write_manifest(bundle: Bundle, folder: Path, scheme: Scheme, facts: dict[str, Any]) -> None:
    old = bundle.manifest
    files = {path.name: FileEntry(path.stat().st_size, sha256_of(path)) for path in sorted(folder.iterdir())}
    manifest = Manifest(
        model=old.model,
        precision=scheme.precision,
        engines=old.engines,
        files=files,
        text=old.text,
        source=old.source | {"bundle_sha256": sha256_of(bundle.root / MANIFEST)},
        tools=old.tools | {name: version(name) for name in ("onnx", "onnxruntime", "torch", "hart-edge")},
        defaults=old.defaults,
        quantization=facts,
    )
    (folder / MANIFEST).write_text(json.dumps(manifest.to_json(), indent=1) + "\n", encoding="utf-8")
