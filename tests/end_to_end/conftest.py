"""A tiny random checkpoint in the published layout and the bundles exported from it, made once per session."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hart_edge.export.checkpoint import Checkpoint, load_checkpoint
from hart_edge.export.exporter import export_bundle
from hart_edge.export.random_checkpoint import SIZES, make_checkpoint
from hart_edge.runtime import Bundle, Pipeline
from hart_edge.runtime.bundle import MANIFEST
from hart_edge.runtime.files import sha256_of


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", SIZES["tiny"])


@pytest.fixture(scope="session")
def checkpoint(checkpoint_folder: Path) -> Checkpoint:
    return load_checkpoint(checkpoint_folder)


@pytest.fixture(scope="session")
def bundle_root(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An fp32 bundle that tests read but never change."""
    return export_bundle(checkpoint, tmp_path_factory.mktemp("bundle") / "fp32").root


@pytest.fixture(scope="session")
def bundle_root_fp16(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(checkpoint, tmp_path_factory.mktemp("bundle") / "fp16", "fp16").root


@pytest.fixture(scope="session")
def pipe(bundle_root: Path) -> Iterator[Pipeline]:
    with Pipeline.open(Bundle(bundle_root)) as opened:
        yield opened


@pytest.fixture
def bundle_copy(bundle_root: Path, tmp_path: Path) -> Path:
    """A bundle of the test's own."""
    return Path(shutil.copytree(bundle_root, tmp_path / "bundle"))


@pytest.fixture
def rehash() -> Callable[[Path], None]:
    """Make the manifest agree with changed files, as someone would who wants a bundle to look untouched."""

    def update(root: Path) -> None:
        manifest = json.loads((root / MANIFEST).read_text())
        for name, entry in manifest["files"].items():
            entry.update(bytes=(root / name).stat().st_size, sha256=sha256_of(root / name))
        (root / MANIFEST).write_text(json.dumps(manifest))

    return update
