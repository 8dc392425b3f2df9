"""Writes `accuracy.json`: the certificate of a bundle, or the report of a recorded run."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hart_edge.runtime.bundle import MANIFEST, Bundle
from hart_edge.runtime.files import sha256_of, write_bytes

from .checks import Report

SCHEMA = 1


def write_certificate(report: Report, paths: Sequence[Path], bundle: Bundle | None = None, facts: dict[str, Any] | None = None) -> None:
    """Write the report with date, machine and versions to every path.

    Args:
        report: what was measured.
        paths: files to write, each in one step.
        bundle: ties the certificate to exactly these files, through the hash of their manifest.
        facts: anything else worth keeping: checkpoint, prompts, backend.
    """
    content = {
        "schema": SCHEMA,
        "title": report.title,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "manifest_sha256": None if bundle is None else sha256_of(bundle.root / MANIFEST),
        "machine": {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
        "tools": {name: version(name) for name in ("hart-edge", "onnxruntime", "numpy", "torch")},
        **(facts or {}),
        **report.to_json(),
    }
    data = (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
    for path in paths:
        write_bytes(path, data)


def _processor() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()
