"""A certificate applies when verification passed and the bundle is the one that was verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hart_edge.runtime.certificate import read_certificate
from hart_edge.runtime.files import sha256_of


def certify(folder: Path, **changes: Any) -> None:
    report = {"passed": True, "manifest_sha256": sha256_of(folder / "manifest.json"), "date": "2026-11-21"}
    (folder / "accuracy.json").write_text(json.dumps(report | changes))


def test_passed_certificate_is_valid(bundle_folder: Path) -> None:
    certify(bundle_folder, stages={"context": 1})
    certificate = read_certificate(bundle_folder)
    assert certificate.valid
    assert certificate.summary == "verified on 2026-11-21"
    assert certificate.report["stages"] == {"context": 1}


def test_no_certificate(bundle_folder: Path) -> None:
    certificate = read_certificate(bundle_folder)
    assert not certificate.valid
    assert certificate.summary == "not verified: no accuracy.json"
    assert certificate.report == {}


@pytest.mark.parametrize("passed", [False, None, 0, "false", "no"])
def test_failed_certificate(bundle_folder: Path, passed: Any) -> None:
    certify(bundle_folder, passed=passed)
    certificate = read_certificate(bundle_folder)
    assert not certificate.valid
    assert certificate.report["passed"] == passed


def test_failure_is_dated(bundle_folder: Path) -> None:
    certify(bundle_folder, passed=False)
    assert read_certificate(bundle_folder).summary == "verification FAILED on 2026-11-21"


def test_certificate_of_another_manifest(bundle_folder: Path, edit_manifest) -> None:
    certify(bundle_folder)
    edit_manifest(source={"checkpoint": "another"})
    certificate = read_certificate(bundle_folder)
    assert not certificate.valid
    assert "another version of this bundle" in certificate.summary


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"19", b'{"passed": true}', b'{"manifest_sha256": ""}', b"\xff"])
def test_unreadable_certificate(bundle_folder: Path, content: bytes) -> None:
    (bundle_folder / "accuracy.json").write_bytes(content)
    certificate = read_certificate(bundle_folder)
    assert not certificate.valid
    assert certificate.summary == "not verified: accuracy.json cannot be read"


def test_certificate_without_a_date(bundle_folder: Path) -> None:
    report = {"passed": True, "manifest_sha256": sha256_of(bundle_folder / "manifest.json")}
    (bundle_folder / "accuracy.json").write_text(json.dumps(report))
    certificate = read_certificate(bundle_folder)
    assert certificate.valid
    assert "unknown date" in certificate.summary
