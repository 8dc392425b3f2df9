"""Compiled kernels on disk, in the user's cache folder.

An entry's name is the hash of all that decides its content: source, included headers, expressions, architecture, options,
compiler version, format. It starts with a magic word and the hash of the rest. What does not check out is compiled again,
so a damaged, truncated or foreign file only costs time, as does a folder that cannot be written.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from pathlib import Path

from .errors import HartWarning, InputError, MissingPackageError
from .files import check_writable, write_bytes
from .nvrtc import OPTIONS, Compiled, Compiler, Unit

MAGIC = b"hart-edge kernels 1\n"
DIGEST = 32


class KernelCache:
    """Compiles what it does not hold. Processes and threads may share a folder: entries appear whole or not at all.

    Args:
        folder: created when needed; the user's cache folder if not given.
        compiler: NVRTC if not given.
    """

    def __init__(self, folder: Path | None = None, compiler: Compiler | None = None) -> None:
        self.folder = folder or default_folder()
        self.compiler = compiler or Compiler()
        self._writable: bool | None = None

    def get(self, source: Unit, capability: int) -> Compiled:
        """The unit compiled for SM`capability`; KernelError with the compiler's log if it does not compile."""
        key = self.key(source, capability)
        entry = self.folder / f"{source.name}-sm{capability}-{key[:32]}.bin"
        found = _read(entry, key)
        if found is not None:
            return found
        if not self._can_write():
            with tempfile.TemporaryDirectory(prefix="hart-edge-") as headers:
                return self.compiler.compile(source, capability, Path(headers))
        compiled = self.compiler.compile(source, capability, self.folder / f"headers-{self.compiler}")
        self._write(entry, _packed(key, compiled))
        return compiled

    def key(self, source: Unit, capability: int) -> str:
        """Hex SHA-256 of everything that decides the result."""
        parts = [MAGIC.decode(), source.name, source.text, sorted(source.headers.items()), source.expressions]
        return hashlib.sha256(json.dumps([*parts, capability, OPTIONS, self.compiler.version]).encode()).hexdigest()

    def _can_write(self) -> bool:
        """Looked up once; warns once."""
        if self._writable is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                check_writable(self.folder / "entry")
                self._writable = True
            except (OSError, InputError) as error:
                self._give_up(error)
        return bool(self._writable)

    def _write(self, entry: Path, data: bytes) -> None:
        try:
            write_bytes(entry, data)
        except InputError as error:  # the disk is full, or the folder went away
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._writable = False
        message = f"compiled kernels cannot be kept in {self.folder} ({error}); every start compiles them again."
        warnings.warn(message, HartWarning, stacklevel=4)


def default_folder() -> Path:
    try:
        from platformdirs import user_cache_path
    except ImportError as error:
        raise MissingPackageError(
            "compiling kernels needs platformdirs, which is not installed.", "Run: pip install platformdirs"
        ) from error
    folder: Path = user_cache_path("hart-edge", appauthor=False) / "kernels"
    return folder


def _packed(key: str, compiled: Compiled) -> bytes:
    facts = json.dumps({"key": key, "names": dict(compiled.names), "log": compiled.log})
    payload = facts.encode() + b"\n" + compiled.cubin
    return MAGIC + hashlib.sha256(payload).digest() + payload


def _read(entry: Path, key: str) -> Compiled | None:
    """The entry, or None if it is missing, unreadable, damaged or of another key."""
    try:
        data = entry.read_bytes()
    except OSError:
        return None
    start = len(MAGIC) + DIGEST
    payload = data[start:]
    if data[:start] != MAGIC + hashlib.sha256(payload).digest():
        return None
    line, _, cubin = payload.partition(b"\n")
    facts = json.loads(line)
    return Compiled(cubin, facts["names"], facts["log"]) if facts["key"] == key else None
