"""SHA-256 of large files, remembered in the user's cache folder for as long as nothing about the file changes.

Hashing the weights of the released size takes longer than loading them and drawing a picture. What counts as unchanged: path,
inode, size, and the times of the last change of content and of the file's entry. A program cannot set the latter to the past,
except on Windows, where it is the time of creation.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from .disk_cache import DiskCache, user_folder
from .errors import MissingPackageError
from .files import sha256_of

MAGIC = b"hart-edge hashes 1\n"
LARGE = 64 << 20
"""Bytes from which a file's hash is remembered; smaller ones take less than 50 ms."""
SETTLED = 2.0
"""Seconds since a file's last change without which its hash is not remembered: a clock may be too coarse to show the next one."""


def remembered_sha256(path: Path, folder: Path | None = None) -> str:
    """Hex SHA-256 of a file; of a large one from an earlier time, unless something about it has changed since.

    Args:
        folder: of what is remembered; the user's cache folder if not given.
    """
    before = path.stat()
    memory = _memory(folder) if before.st_size >= LARGE else None
    if memory is None:
        return sha256_of(path)
    key = _key(path, before)
    name = f"{key[:32]}.bin"
    found = memory.read(name, key)
    if found is not None:
        return str(found[0]["sha256"])
    digest = sha256_of(path)
    settled = time.time() - max(before.st_mtime, before.st_ctime) > SETTLED
    if settled and _key(path, path.stat()) == key:
        memory.write(name, key, {"sha256": digest}, b"")
    return digest


def _memory(folder: Path | None) -> DiskCache | None:
    try:
        return DiskCache(folder or user_folder("hashes"), MAGIC, ("hashes of large files", "every start takes them again"))
    except MissingPackageError:  # the core install keeps nothing
        return None


def _key(path: Path, facts: os.stat_result) -> str:
    parts = [str(path.resolve()), facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
