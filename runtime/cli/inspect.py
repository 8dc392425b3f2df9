"""`hart-edge inspect`: what a bundle holds, and the engines built for it, without running either."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from ..bundle import Bundle, bundled_folder
from ..certificate import read_certificate
from ..errors import EngineError
from ..trt.packages import PACKAGES
from ..trt.sidecar import find_engines, read_sidecar, staleness
from .output import console, mebibytes, write_json


def inspect(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder [default: the bundled model].")] = None,
    check: Annotated[bool, typer.Option(help="Compare every file with its SHA-256.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the facts as JSON; - for standard output.")] = None,
) -> None:
    """Show a bundle's model, files, sizes, certificate, and the TensorRT engines that were built for it."""
    opened = Bundle(bundled_folder() if bundle is None else bundle, check_files=check)
    facts = describe(opened)
    write_json(json_file, facts)
    if str(json_file) != "-":
        console().print(_table(opened, facts))
        if facts["certificate"]["gates"]:
            console().print(_gates(facts["certificate"]["gates"]))


def describe(bundle: Bundle) -> dict[str, Any]:
    """Everything that `inspect` shows."""
    certificate = read_certificate(bundle.root)
    return {
        **bundle.manifest.to_json(),
        "image_size": bundle.spec.image_size,
        "total_bytes": bundle.bytes,
        "kv_cache_bytes_per_image": kv_cache_bytes(bundle),
        "certificate": {"valid": certificate.valid, "summary": certificate.summary, "gates": worst_gates(certificate.report)},
        "engine_folders": [facts for name in PACKAGES if (facts := engine_facts(bundle, name)) is not None],
    }


def engine_facts(bundle: Bundle, backend: str) -> dict[str, Any] | None:
    """Of a backend's engines for the bundle, `problem` where they cannot be used as they are; None when there are none."""
    folder = find_engines(bundle.root, backend)
    if folder is None:
        return None
    facts: dict[str, Any] = {"backend": backend, "folder": str(folder)}
    try:
        sidecar = read_sidecar(folder)
    except EngineError as error:
        return facts | {"problem": str(error)}
    return facts | {
        "targets": list(sidecar.targets),
        "precision": sidecar.precision,
        "batch": sidecar.batch,
        "version": sidecar.version,
        "total_bytes": sum(engine.bytes for engine in sidecar.engines.values()),
        "certificate": read_certificate(bundle.root, folder).summary,
        "problem": staleness(sidecar, bundle, None),
    }


def worst_gates(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a certificate: every gated figure once, the value nearest to its limit or furthest beyond."""
    worst: dict[tuple[str, str, str], dict[str, Any]] = {}
    for check in report.get("checks", ()):
        if check["gate"] is None:
            continue
        key = (check["stage"], check["mode"], check["metric"])
        held = worst.get(key)
        if held is None or not _finite(check) or (_finite(held) and _beyond(check, held)):
            worst[key] = check
    return list(worst.values())


def _finite(check: Mapping[str, Any]) -> bool:
    """A value that is not finite is written as a word."""
    return not isinstance(check["value"], str)


def _beyond(check: Mapping[str, Any], held: Mapping[str, Any]) -> bool:
    return bool(check["value"] < held["value"]) if check["gate"].startswith("≥") else bool(check["value"] > held["value"])


def quantised(section: Mapping[str, Any]) -> str:
    """A manifest's quantization section in one line."""
    counts = Counter(section["groups"].values())
    groups = ", ".join(f"{count} groups {treatment}" for treatment, count in counts.items())
    return f"{section['scheme']}: {groups}; the rest {section['floats']}; {section['prompts']['count']} prompts"


def kv_cache_bytes(bundle: Bundle) -> int:
    """Keys and values of both guidance rows of one picture."""
    spec, dtype = bundle.spec, np.float16 if bundle.manifest.floats == "fp16" else np.float32
    return 2 * 2 * spec.depth * spec.heads * spec.cache_length * spec.head_dim * np.dtype(dtype).itemsize


def _table(bundle: Bundle, facts: dict[str, Any]) -> Table:
    spec, text = bundle.spec, bundle.manifest.text
    table = Table(title=str(bundle.root), title_justify="left", show_header=False)
    table.add_row("picture", f"{spec.image_size} × {spec.image_size}, scales {' '.join(map(str, spec.patch_nums))}")
    table.add_row("transformer", f"depth {spec.depth}, width {spec.width}, heads {spec.heads}, {spec.context_tokens} context tokens")
    table.add_row("codebook", f"{spec.codebook_size} codes of {spec.latent_channels}")
    table.add_row("diffusion", f"width {spec.diffusion_width}, {spec.diffusion_steps} steps")
    table.add_row("text", "none: takes context tensors" if text is None else f"system prompt {text.system_prompt_sha256 or 'none'}")
    own = bundle.manifest.defaults
    table.add_row("sampling", ", ".join(f"{name} {value}" for name, value in own.items()) if own else "as published")
    table.add_row("precision", bundle.manifest.precision)
    if bundle.manifest.quantization is not None:
        table.add_row("quantised", quantised(bundle.manifest.quantization))
    table.add_row("KV cache", f"{mebibytes(facts['kv_cache_bytes_per_image'])} per picture")
    table.add_row("certificate", facts["certificate"]["summary"])
    table.add_row("made with", ", ".join(f"{name} {number}" for name, number in bundle.manifest.tools.items()))
    table.add_section()
    for name, entry in bundle.manifest.files.items():
        table.add_row(name, mebibytes(entry.bytes))
    table.add_row("total", mebibytes(bundle.bytes))
    for built in facts["engine_folders"]:
        table.add_section()
        table.add_row(f"{built['backend']} engines", built["folder"])
        if "targets" in built:
            table.add_row("", f"{', '.join(built['targets'])}; {built['precision']}; up to {built['batch']} pictures at a time")
            table.add_row("", f"{mebibytes(built['total_bytes'])}, TensorRT {built['version']}, certificate: {built['certificate']}")
        if built["problem"]:
            table.add_row("", built["problem"])
    return table


def _gates(checks: list[dict[str, Any]]) -> Table:
    table = Table(title="gates of the certificate", title_justify="left")
    for name in ("stage", "mode", "figure", "worst", "gate", "where"):
        table.add_column(name, justify="right" if name in ("worst", "gate") else "left")
    for check in checks:
        value = check["value"] if isinstance(check["value"], str) else f"{check['value']:.6g}"
        table.add_row(check["stage"], check["mode"], check["metric"], value, check["gate"], check["where"][:60])
    return table
