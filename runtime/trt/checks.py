"""What is checked of an engine file before TensorRT sees it: TensorRT finds a changed byte late or not at all."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Protocol

from ..errors import EngineError
from ..file_hashes import remembered_sha256
from .sidecar import EngineFacts, Sidecar

MAGIC = b"vtrt"
HEADER = 40
CAPABILITY_BITS = {75: 1, 80: 2, 86: 4, 89: 8, 120: 16, 121: 32}
"""Of the mask in a TensorRT-RTX engine's header, by compute capability."""


class Card(Protocol):
    """What is known of a card; capability: 10 · major + minor."""

    @property
    def name(self) -> str: ...
    @property
    def capability(self) -> int: ...


def map_engine(path: Path, facts: EngineFacts) -> mmap.mmap:
    """The file's bytes, its size and SHA-256 compared with `engines.json`; EngineError says what differs.

    The hash of a large file is remembered (file_hashes.py): taking it anew would hold up every first picture.
    """
    remedy = "Copy the engines again from their source, or build them again with `hart-edge build … --overwrite`."
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size != facts.bytes:
                raise EngineError(f"{path} has {size} bytes; engines.json says {facts.bytes}.", remedy)
            if remembered_sha256(path) != facts.sha256:
                raise EngineError(f"{path} has another SHA-256 than engines.json says.", remedy)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise EngineError(f"{path} cannot be read: {error}.", remedy) from error


def check_header(path: Path, header: bytes, version: str, info: Card) -> None:
    """Magic word, size, version and compute capabilities of a TensorRT-RTX engine; EngineError says which does not fit."""
    remedy = "Build the engines again with `hart-edge build … --overwrite`."
    if len(header) < HEADER or header[:4] != MAGIC:
        raise EngineError(f"{path} is no TensorRT-RTX engine: it begins with {header[:4]!r}; expected {MAGIC!r}.", remedy)
    size, found, mask = struct.unpack_from("<Q", header, 16)[0], header[24:28], struct.unpack_from("<I", header, 32)[0]
    if size != path.stat().st_size:
        raise EngineError(f"{path} says that it has {size} bytes; it has {path.stat().st_size}.", remedy)
    wanted = [int(part) for part in version.split(".")[:4]]
    if list(found) != wanted:
        raise EngineError(f"{path} was built with TensorRT-RTX {'.'.join(map(str, found))}; installed is {version}.", remedy)
    bit = CAPABILITY_BITS.get(info.capability, 0)
    if not mask & bit:
        built = [f"SM{capability}" for capability, bit in CAPABILITY_BITS.items() if mask & bit]
        raise EngineError(
            f"{path} was built for {', '.join(built) or 'no known card'}; {info.name} has SM{info.capability}.",
            f"Run: hart-edge build … --target sm{info.capability} --overwrite",
        )


def check_card(sidecar: Sidecar, info: Card) -> None:
    """EngineError unless the engines were built for the card."""
    has = f"sm{info.capability}"
    if sidecar.capability is None and has not in sidecar.targets:
        raise EngineError(
            f"the engines in {sidecar.folder} are for {', '.join(sidecar.targets)}; {info.name} has {has}.",
            f"Run: hart-edge build … --target {has} --overwrite",
        )
    if sidecar.capability not in (None, info.capability):
        raise EngineError(
            f"the engines in {sidecar.folder} were built on a card of SM{sidecar.capability}; {info.name} has SM{info.capability}.",
            "Build them again on this machine: hart-edge build … --backend tensorrt --overwrite",
        )
