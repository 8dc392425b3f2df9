"""Writing that never leaves half a file or half a folder: write beside the target, then rename."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in one step; InputError names the path and the reason when that is not possible."""
    with writable(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def writable(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well and vanishes when it does not.

    A link is followed: the file it points to is replaced.
    """
    path = _checked(path)
    with _reported(path):
        handle, name = tempfile.mkstemp(prefix=".hart-edge-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writable_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends well and vanishes when it does not.

    An existing folder is replaced only with `overwrite`, and only after the new one is complete.
    """
    path = path.absolute()
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already.", "Choose another folder or pass --overwrite.")
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".hart-edge-", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            if path.exists():
                _swap(temporary, path)
            else:
                temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: Path) -> None:
    """Find out before long work whether `path` can be written; raises what `writable` would raise."""
    path = _checked(path)
    with _reported(path), tempfile.TemporaryFile(dir=path.parent):
        pass


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _swap(new: Path, old: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{old.name}.", dir=old.parent) as aside:
        old.rename(Path(aside) / "old")
        try:
            new.rename(old)
        except OSError:
            (Path(aside) / "old").rename(old)
            raise


def _checked(path: Path) -> Path:
    """The file that is meant; InputError for a folder, a device or a name that no file can have."""
    if "\0" in str(path):
        raise InputError(f"the file name {str(path)!r} holds a NUL character.", "Remove it.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a file name.", f"Try {path / 'out.png'}.")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file.", "Choose another file name.")
    return path.resolve() if path.is_symlink() else path


# What the system says when it will not take a write, as against a mistake of ours.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ENAMETOOLONG}
_REFUSALS |= {errno.ENOENT, errno.ENOTDIR, errno.EEXIST}  # the folder to write into is missing


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into an InputError that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        remedy = "Check that the folder exists, is writable and has free space."
        raise InputError(f"cannot write {path}: {error.strerror or error}.", remedy) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
