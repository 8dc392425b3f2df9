"""Writing that never leaves half a file or half a folder: write beside the target, then rename."""

from __future__ import annotations

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
    """A temporary file beside `path` that takes its place when the block ends well and vanishes when it does not."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a file name.", f"Try {path / 'out.png'}.")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise _refused(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise _refused(path, error) from error
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise _refused(path, error) from error
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            _swap(temporary, path)
        else:
            temporary.rename(path)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: Path) -> None:
    """Find out before long work whether `path` can be written; raises what `writable` would raise."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a file name.", f"Try {path / 'out.png'}.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _refused(path, error) from error


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


def _refused(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot write {path}: {error.strerror or error}.", "Check that the folder exists, is writable and has free space.")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
