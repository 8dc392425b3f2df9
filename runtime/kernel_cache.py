"""Compiled kernels on disk, in the user's cache folder.

An entry's name is the hash of all that decides its content: source, included headers, expressions, architecture, options,
compiler version, format. What does not check out is compiled again (`runtime/disk_cache.py`).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from .disk_cache import DiskCache, user_folder
from .nvrtc import OPTIONS, Compiled, Compiler, Unit

MAGIC = b"hart-edge kernels 1\n"


class KernelCache:
    """Compiles what it does not hold. Processes and threads may share a folder: entries appear whole or not at all.

    Args:
        folder: created when needed; the user's cache folder if not given.
        compiler: NVRTC if not given.
    """

    def __init__(self, folder: Path | None = None, compiler: Compiler | None = None) -> None:
        self.folder = folder or default_folder()
        self.compiler = compiler or Compiler()
        self._entries = DiskCache(self.folder, MAGIC, ("compiled kernels", "every start compiles them again"))

    def get(self, source: Unit, capability: int) -> Compiled:
        """The unit compiled for SM`capability`; KernelError with the compiler's log if it does not compile."""
        key = self.key(source, capability)
        name = f"{source.name}-sm{capability}-{key[:32]}.bin"
        found = self._entries.read(name, key)
        if found is not None:
            facts, cubin = found
            return Compiled(cubin, facts["names"], facts["log"])
        if not self._entries.writable:
            with tempfile.TemporaryDirectory(prefix="hart-edge-") as headers:
                return self.compiler.compile(source, capability, Path(headers))
        compiled = self.compiler.compile(source, capability, self.folder / f"headers-{self.compiler}")
        self._entries.write(name, key, {"names": dict(compiled.names), "log": compiled.log}, compiled.cubin)
        return compiled

    def key(self, source: Unit, capability: int) -> str:
        """Hex SHA-256 of everything that decides the result."""
        parts = [MAGIC.decode(), source.name, source.text, sorted(source.headers.items()), source.expressions]
        return hashlib.sha256(json.dumps([*parts, capability, OPTIONS, self.compiler.version]).encode()).hexdigest()


def default_folder() -> Path:
    return user_folder("kernels")
