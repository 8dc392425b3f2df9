"""The machine without its GPU: system, memory, disk space, and the bundled model."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from ..bundle import Bundle, bundled_folder
from ..certificate import read_certificate
from ..errors import HartError, MissingPackageError
from ..kernel_cache import default_folder


@dataclass(frozen=True)
class System:
    """Attributes: cpus: logical. memory: bytes of the machine."""

    os: str
    python: str
    executable: str
    cpus: int | None
    memory: int


@dataclass(frozen=True)
class Disk:
    """A folder that is written to. free: bytes, None if `problem` says why it is not known. writable: by this user."""

    use: str
    folder: str
    free: int | None
    writable: bool
    problem: str = ""


@dataclass(frozen=True)
class Model:
    """The bundle that came with this install. certified: verified, for exactly these files."""

    folder: str
    usable: bool
    certified: bool
    summary: str


def look_at_system() -> System:
    return System(platform.platform(), platform.python_version(), sys.executable, os.cpu_count(), _memory())


def look_at_disks() -> list[Disk]:
    """The cache of compiled kernels and the working folder."""
    working = _disk("working folder", Path.cwd())
    try:
        return [_disk("kernel cache", default_folder()), working]
    except MissingPackageError as error:
        return [Disk("kernel cache", "", None, False, str(error)), working]


def look_at_model() -> Model:
    """Opens it and compares every file with its SHA-256."""
    folder = ""
    try:
        folder = str(bundled_folder())
        bundle = Bundle(folder)
    except HartError as error:
        return Model(folder, False, False, str(error))
    certificate = read_certificate(bundle.root)
    return Model(folder, True, certificate.valid, certificate.summary)


def _disk(use: str, folder: Path) -> Disk:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return Disk(use, str(folder), shutil.disk_usage(there).free, os.access(there, os.W_OK))


def _memory() -> int:
    if sys.platform == "win32":
        import psutil

        return int(psutil.virtual_memory().total)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
