"""Atomic writing: a target is old or new, never half, and nothing temporary stays behind."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from hart_edge.runtime import files
from hart_edge.runtime.errors import InputError
from hart_edge.runtime.files import check_writable, sha256_of, writable, writable_folder, write_bytes


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def disk_full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_bytes_are_written(tmp_path: Path) -> None:
    write_bytes(tmp_path / "out.bin", b"new")
    assert (tmp_path / "out.bin").read_bytes() == b"new"
    assert names(tmp_path) == ["out.bin"]


def test_existing_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.bin").write_bytes(b"old and longer")
    write_bytes(tmp_path / "out.bin", b"new")
    assert (tmp_path / "out.bin").read_bytes() == b"new"
    assert names(tmp_path) == ["out.bin"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_files_and_folders_get_the_usual_permissions(tmp_path: Path) -> None:
    previous = os.umask(0o022)
    try:
        write_bytes(tmp_path / "out.bin", b"new")
        with writable_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(previous)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("out.bin", "folder")]
    assert modes == [0o644, 0o755]


def test_temporary_file_lies_beside_the_target_with_its_suffix(tmp_path: Path) -> None:
    with writable(tmp_path / "out.png") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
        assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError, InputError("bad")])
def test_interrupted_write_leaves_the_old_file_alone(tmp_path: Path, interruption) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with pytest.raises((KeyboardInterrupt, ValueError, InputError)), writable(target) as temporary:
        temporary.write_bytes(b"half")
        raise interruption
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["out.bin"]


def test_interrupted_write_of_a_new_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writable(tmp_path / "out.bin") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_full_disk_is_an_input_error_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.bin").write_bytes(b"old")
    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(InputError, match=r"out\.bin.*No space left") as caught:
        write_bytes(tmp_path / "out.bin", b"new")
    assert "free space" in caught.value.hint
    assert (tmp_path / "out.bin").read_bytes() == b"old"
    assert names(tmp_path) == ["out.bin"]


def test_failing_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.bin").write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", disk_full)
    with pytest.raises(InputError, match=r"out\.bin"):
        write_bytes(tmp_path / "out.bin", b"new")
    assert (tmp_path / "out.bin").read_bytes() == b"old"
    assert names(tmp_path) == ["out.bin"]


def test_missing_parent_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        write_bytes(tmp_path / "absent" / "out.bin", b"new")
    assert names(tmp_path) == []


def test_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(InputError, match=r"file.out\.bin"):
        write_bytes(tmp_path / "file" / "out.bin", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("write", [lambda path: write_bytes(path, b""), check_writable])
def test_folder_as_file_name_is_refused_with_a_suggestion(tmp_path: Path, write) -> None:
    with pytest.raises(InputError, match="is a folder") as caught:
        write(tmp_path)
    assert "out.png" in caught.value.hint


def test_check_writable_accepts_and_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "out.png")
    assert names(tmp_path) == []
    with pytest.raises(InputError, match="absent"):
        check_writable(tmp_path / "absent" / "out.png")


def test_folder_appears_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    with writable_folder(target) as temporary:
        (temporary / "a").write_bytes(b"1")
        assert not target.exists()
        assert temporary.parent == target.parent
    assert names(target) == ["a"]
    assert names(target.parent) == ["bundle"]


def test_existing_folder_is_refused_without_overwrite(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    with pytest.raises(InputError, match="exists already") as caught, writable_folder(target):
        pytest.fail("the block must not run")
    assert "--overwrite" in caught.value.hint


def test_overwrite_replaces_the_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_bytes(b"old")
    with writable_folder(target, overwrite=True) as temporary:
        (temporary / "new").write_bytes(b"new")
        assert names(target) == ["old"]
    assert names(target) == ["new"]
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("existing", [False, True])
def test_interrupted_folder_leaves_things_as_they_were(tmp_path: Path, existing: bool) -> None:
    target = tmp_path / "bundle"
    if existing:
        target.mkdir()
        (target / "old").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), writable_folder(target, overwrite=True) as temporary:
        (temporary / "new").write_bytes(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == (["bundle"] if existing else [])
    assert not existing or names(target) == ["old"]


def test_full_disk_while_filling_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bundle.*No space left"), writable_folder(tmp_path / "bundle") as temporary:
        (temporary / "a").write_bytes(b"1")
        disk_full()
    assert names(tmp_path) == []


def test_failing_swap_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, rename = tmp_path / "bundle", Path.rename
    target.mkdir()
    (target / "old").write_bytes(b"old")

    def refuse_the_new_one(self: Path, other: Path) -> Path:
        return disk_full() if self.name.startswith(".hart-edge-") else rename(self, other)

    monkeypatch.setattr(files.Path, "rename", refuse_the_new_one)
    with pytest.raises(InputError, match="bundle"), writable_folder(target, overwrite=True) as temporary:
        (temporary / "new").write_bytes(b"new")
    assert names(target) == ["old"]
    assert names(tmp_path) == ["bundle"]


def test_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(InputError, match="file"), writable_folder(tmp_path / "file" / "bundle"):
        pytest.fail("the block must not run")
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("size", [0, 19, (1 << 22) + 989])
def test_sha256_of_any_size(tmp_path: Path, size: int) -> None:
    data = bytes(i % 251 for i in range(min(size, 989))) * (size // 989 + 1)
    (tmp_path / "data").write_bytes(data[:size])
    assert sha256_of(tmp_path / "data") == hashlib.sha256(data[:size]).hexdigest()
