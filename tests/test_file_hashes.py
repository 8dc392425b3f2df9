"""Remembered hashes: taken again as soon as anything about a file changes, and never remembered too early."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hart_edge.runtime import file_hashes
from hart_edge.runtime.errors import MissingPackageError
from hart_edge.runtime.file_hashes import remembered_sha256
from hart_edge.runtime.files import sha256_of


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were really read; every file is large, and settled at once."""
    read: list[Path] = []

    def count(path: Path) -> str:
        read.append(path)
        return sha256_of(path)

    monkeypatch.setattr(file_hashes, "LARGE", 1)
    monkeypatch.setattr(file_hashes, "SETTLED", -1.0)
    monkeypatch.setattr(file_hashes, "sha256_of", count)
    return read


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"content")
    return path


def test_a_file_is_read_once(weights: Path, tmp_path: Path, hashed: list[Path]) -> None:
    wanted = sha256_of(weights)
    assert [remembered_sha256(weights, tmp_path / "memory") for _ in range(3)] == [wanted] * 3
    assert len(hashed) == 1


def test_a_change_that_keeps_size_and_time_of_content_is_seen(weights: Path, tmp_path: Path, hashed: list[Path]) -> None:
    """Setting the time back changes the time of the file's entry."""
    before = weights.stat()
    first = remembered_sha256(weights, tmp_path / "memory")
    time.sleep(0.02)
    weights.write_bytes(b"CONTENT")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert remembered_sha256(weights, tmp_path / "memory") != first
    assert len(hashed) == 2


def test_another_file_at_the_path_is_read(weights: Path, tmp_path: Path, hashed: list[Path]) -> None:
    remembered_sha256(weights, tmp_path / "memory")
    other = tmp_path / "other"
    other.write_bytes(b"CONTENT")
    other.replace(weights)
    assert remembered_sha256(weights, tmp_path / "memory") == sha256_of(weights)
    assert len(hashed) == 2


def test_a_file_that_was_just_written_is_not_remembered(
    weights: Path, tmp_path: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_hashes, "SETTLED", 60.0)
    for _ in range(2):
        remembered_sha256(weights, tmp_path / "memory")
    assert len(hashed) == 2


def test_small_files_and_installs_without_a_cache_remember_nothing(
    weights: Path, tmp_path: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(name: str) -> Path:
        raise MissingPackageError("no platformdirs.")

    monkeypatch.setattr(file_hashes, "user_folder", none)
    remembered_sha256(weights)
    monkeypatch.setattr(file_hashes, "LARGE", 1 << 20)
    remembered_sha256(weights, tmp_path / "memory")
    assert len(hashed) == 2
    assert not (tmp_path / "memory").exists()
