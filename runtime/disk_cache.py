"""What is costly to make and cheap to keep, in the user's cache folder: entries that appear whole or not at all.

An entry starts with a magic word and the hash of the rest: a line of JSON facts, the key among them, and the data. What does
not check out counts as missing, so a damaged, truncated or foreign file only costs time, as does a folder that cannot be
written. Knows nothing of what is kept.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from .errors import HartWarning, InputError, MissingPackageError
from .files import check_writable, write_bytes

DIGEST = 32


class DiskCache:
    """Entries in one folder, which processes and threads may share.

    Args:
        folder: created when needed.
        magic: of its entries, with their format's number; ends in a newline.
        what: is kept, in a warning, with what it costs that it is not: "compiled kernels", "every start compiles them again".
    """

    def __init__(self, folder: Path, magic: bytes, what: tuple[str, str]) -> None:
        self.folder, self._magic, self._what = folder, magic, what
        self._writable: bool | None = None

    @property
    def writable(self) -> bool:
        """Looked up once; warns once."""
        if self._writable is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                check_writable(self.folder / "entry")
                self._writable = True
            except (OSError, InputError) as error:
                self._give_up(error)
        return bool(self._writable)

    def read(self, name: str, key: str) -> tuple[dict[str, Any], bytes] | None:
        """Facts and data of an entry, or None if it is missing, unreadable, damaged or of another key."""
        try:
            content = (self.folder / name).read_bytes()
        except OSError:
            return None
        start = len(self._magic) + DIGEST
        payload = content[start:]
        if content[:start] != self._magic + hashlib.sha256(payload).digest():
            return None
        line, _, data = payload.partition(b"\n")
        facts = json.loads(line)
        return (facts, data) if facts["key"] == key else None

    def write(self, name: str, key: str, facts: dict[str, Any], data: bytes) -> None:
        """Keep an entry if that is possible; warns once if it is not."""
        if not self.writable:
            return
        payload = json.dumps({"key": key, **facts}).encode() + b"\n" + data
        try:
            write_bytes(self.folder / name, self._magic + hashlib.sha256(payload).digest() + payload)
        except InputError as error:  # the disk is full, or the folder went away
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._writable = False
        kept, cost = self._what
        warnings.warn(f"{kept} cannot be kept in {self.folder} ({error}); {cost}.", HartWarning, stacklevel=5)


def user_folder(name: str) -> Path:
    """A folder of that name in the user's cache folder; MissingPackageError without platformdirs."""
    try:
        from platformdirs import user_cache_path
    except ImportError as error:
        raise MissingPackageError(
            "keeping files for later starts needs platformdirs, which is not installed.", "Run: pip install platformdirs"
        ) from error
    folder: Path = user_cache_path("hart-edge", appauthor=False) / name
    return folder
