"""Runtime caches on disk: the kernels that TensorRT-RTX compiled for a card, so that the next start compiles none.

A file begins with a magic word and the SHA-256 of the rest, which begins with its key as one line of JSON. What does not
check out never reaches TensorRT.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..cuda import DeviceInfo
from ..disk_cache import user_folder
from ..errors import InputError
from ..files import write_bytes

MAGIC = b"hart-edge runtime cache 1\n"
DIGEST = 32


@dataclass(frozen=True)
class CacheKey:
    """What a cache is for. driver: newest CUDA that the driver supports, 1000 · major + 10 · minor; engine: SHA-256 of its file."""

    card: str
    capability: int
    driver: int
    tensorrt: str
    engine: str

    @classmethod
    def of(cls, info: DeviceInfo, version: str, engine: str) -> CacheKey:
        return cls(info.name, info.capability, info.driver_version, version, engine)


@dataclass(frozen=True)
class Found:
    """A cache's content, None if there is none that applies; `reason` says why, empty where there was no file."""

    content: bytes | None
    reason: str = ""


def cache_path(engines: Path, name: str) -> Path:
    """Where the cache of an engine lies: in the user's cache folder, named after the engine's folder."""
    place = hashlib.sha256(str(engines.resolve()).encode()).hexdigest()[:16]
    return user_folder("tensorrt") / f"{name}-{place}.cache"


def read_cache(path: Path, key: CacheKey) -> Found:
    """The content for this key; why not, if the file is damaged or for another card, driver, TensorRT or engine."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Found(None)
    except OSError as error:
        return Found(None, f"{path} cannot be read: {error.strerror or error}")
    start = len(MAGIC) + DIGEST
    if data[: len(MAGIC)] != MAGIC:
        return Found(None, f"{path} is no runtime cache of this hart-edge")
    if data[len(MAGIC) : start] != hashlib.sha256(data[start:]).digest():
        return Found(None, f"{path} is damaged or cut short")
    line, _, content = data[start:].partition(b"\n")
    stored, wanted = json.loads(line), asdict(key)
    changed = [f"{name} was {stored.get(name)}, is {value}" for name, value in wanted.items() if stored.get(name) != value]
    return Found(None, f"{path} is for another {'; '.join(changed)}") if changed else Found(content)


def write_cache(path: Path, key: CacheKey, content: bytes) -> None:
    """Write it in one step; InputError where the folder cannot be written."""
    payload = json.dumps(asdict(key)).encode() + b"\n" + content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path.parent}: {error.strerror or error}.", "Check its permissions.") from error
    write_bytes(path, MAGIC + hashlib.sha256(payload).digest() + payload)
