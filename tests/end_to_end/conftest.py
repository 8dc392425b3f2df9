"""More bundles of the tiny random checkpoint, installs that bring one, and bundles of a test's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from hart_edge.export import restore
from hart_edge.export.ship import ship
from hart_edge.runtime import Bundle, Pipeline
from hart_edge.runtime import bundle as bundle_module
from hart_edge.runtime.bundle import MANIFEST
from hart_edge.runtime.files import sha256_of


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


@pytest.fixture(scope="session")
def half_folder(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in float16, with sampling settings of its own.

    It has negative zeros, subnormal values and two equal tensors, which a search by value would confuse.
    """
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path_factory.mktemp("checkpoint") / "half"))
    for path in folder.glob("*/model.safetensors"):
        state = {key: value.half() for key, value in load_file(path).items()}
        if path.parent.name == "llm":
            state["blocks.0.attn.q_bias"].fill_(-0.0)
            state["blocks.0.attn.v_bias"].fill_(6e-8)
            state["blocks.1.attn.proj.weight"] = state["blocks.0.attn.proj.weight"].clone()
        save_file(state, path, {"format": "pt"})
    (folder / "generation_config.json").write_text('{"cfg": 3.0, "top_k": 19}')
    return folder


@pytest.fixture(scope="session")
def shipped(half_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package root into which the tiny float16 checkpoint was shipped; tests read it but never change it."""
    root = tmp_path_factory.mktemp("package")
    assert ship(half_folder, root).passed
    return root


@pytest.fixture
def installed(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An install of the test's own that brings the tiny model, and an empty cache; returns its root."""
    root = Path(shutil.copytree(shipped, tmp_path / "package"))
    monkeypatch.setattr(bundle_module, "PACKAGE", root / "runtime")
    monkeypatch.setattr(restore, "PACKAGE", root / "export")
    monkeypatch.setattr(restore, "user_cache_path", lambda *_, **__: tmp_path / "cache")
    return root


@pytest.fixture
def bare_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An install without a bundle; returns the folder where one would be."""
    monkeypatch.setattr(bundle_module, "PACKAGE", tmp_path / "runtime")
    monkeypatch.setattr(restore, "PACKAGE", tmp_path / "export")
    return tmp_path / "runtime" / "bundled"
