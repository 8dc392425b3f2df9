"""Reads a bundle's certificate, `accuracy.json`: what `hart-edge verify` measured. Judges only whether it applies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bundle import CERTIFICATE, MANIFEST, SIDECAR
from .files import sha256_of


@dataclass(frozen=True)
class Certificate:
    """State of a bundle's certificate.

    Attributes:
        valid: verification passed, for exactly these files.
        summary: one sentence for the user.
        report: the parsed file, empty when there is none.
    """

    valid: bool
    summary: str
    report: dict[str, Any]


def read_certificate(root: Path, engines: Path | None = None) -> Certificate:
    """The certificate of the bundle in `root`; it applies while the manifest (which hashes every file) is unchanged.

    Args:
        engines: folder of engines that were built from the bundle; their certificate, which lies there, applies while
            `engines.json` is unchanged, too.
    """
    try:
        report = json.loads(((engines or root) / CERTIFICATE).read_text(encoding="utf-8"))
        passed, manifest = report["passed"] is True, report["manifest_sha256"]
    except FileNotFoundError:
        return Certificate(False, "not verified: no accuracy.json", {})
    except (OSError, ValueError, KeyError, TypeError):
        return Certificate(False, "not verified: accuracy.json cannot be read", {})
    if manifest != sha256_of(root / MANIFEST):
        return Certificate(False, "not verified: accuracy.json belongs to another version of this bundle", report)
    if engines is not None and report.get("engines_sha256") != sha256_of(engines / SIDECAR):
        return Certificate(False, "not verified: accuracy.json belongs to other engines", report)
    if not passed:
        return Certificate(False, f"verification FAILED on {report.get('date', 'an unknown date')}", report)
    return Certificate(True, f"verified on {report.get('date', 'an unknown date')}", report)
