"""`engines.json`, the file beside TensorRT engines: what was built, from what, with what. Reads it and finds the folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import MANIFEST, SIDECAR, Bundle, bundled_folder
from ..disk_cache import user_folder
from ..errors import EngineError, InputError, MissingPackageError

SCHEMA = 2
Range = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class BindingFacts:
    """An input or output: NumPy's name of its dtype, its shape with names of dimensions that vary; inputs: least and largest shape."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    least: tuple[int, ...] = ()
    largest: tuple[int, ...] = ()


@dataclass(frozen=True)
class EngineFacts:
    """One engine file; see `hart_edge.export.build.run` for what is written."""

    file: str
    bytes: int
    sha256: str
    inputs: tuple[BindingFacts, ...]
    outputs: tuple[BindingFacts, ...]
    plugins: tuple[str, ...]  # those that need Python where the engine runs


@dataclass(frozen=True)
class Sidecar:
    """All engines of a folder.

    Attributes:
        targets: architectures such as "sm86", or "native" for those of the card that built them, which `capability` names.
        version: of the TensorRT package that built them.
        source: SHA-256 of every file of the bundle.
    """

    folder: Path
    backend: str
    targets: tuple[str, ...]
    capability: int | None
    precision: str
    batch: int
    version: str
    source: dict[str, str]
    engines: dict[str, EngineFacts]


def rebuild_command(bundle: Path, backend: str) -> str:
    return f"Run: hart-edge build {bundle} --backend {backend} --overwrite"


def read_sidecar(folder: Path) -> Sidecar:
    """EngineError for a folder whose sidecar is missing, damaged or of another schema."""
    path = folder / SIDECAR
    remedy = "Build the engines again with `hart-edge build … --overwrite`."
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            found = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
            raise EngineError(f"{path}: schema {found!r}; this hart-edge reads schema {SCHEMA}.", remedy)
        return _parsed(folder, raw)
    except FileNotFoundError:
        raise EngineError(f"{folder} has no {SIDECAR}: there are no engines.", remedy) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EngineError(f"{path} is malformed: {type(error).__name__}: {error}.", remedy) from error


def _parsed(folder: Path, raw: Mapping[str, Any]) -> Sidecar:
    capability = raw["capability"]
    return Sidecar(
        folder=folder,
        backend=str(raw["backend"]),
        targets=tuple(map(str, raw["targets"])),
        capability=None if capability is None else int(capability),
        precision=str(raw["precision"]),
        batch=int(raw["batch"]),
        version=str(raw["tools"][raw["module"]]),
        source={str(name): str(digest) for name, digest in raw["source"].items()},
        engines={str(name): _engine(facts) for name, facts in raw["engines"].items()},
    )


def _engine(raw: Mapping[str, Any]) -> EngineFacts:
    name = str(raw["file"])
    if Path(name).name != name or name in ("", ".", ".."):
        raise ValueError(f"file name {name!r} leaves the folder")
    return EngineFacts(
        file=name,
        bytes=int(raw["bytes"]),
        sha256=str(raw["sha256"]),
        inputs=tuple(_binding(entry) for entry in raw["inputs"]),
        outputs=tuple(_binding(entry) for entry in raw["outputs"]),
        plugins=tuple(str(plugin) for plugin, facts in raw["plugins"].items() if facts["form"] == "python"),
    )


def _binding(raw: Mapping[str, Any]) -> BindingFacts:
    shape, _ = tuple(size if isinstance(size, int) else str(size) for size in raw["shape"]), np.dtype(str(raw["dtype"]))
    return BindingFacts(
        str(raw["name"]), str(raw["dtype"]), shape, tuple(map(int, raw.get("min", ()))), tuple(map(int, raw.get("max", ())))
    )


def engine_folders(bundle: Path, backend: str) -> list[Path]:
    """Where a bundle's engines may lie: in the bundle, then in the user's cache folder, for a bundle that cannot be written.

    The latter is named after the bundle's manifest, so another bundle at the same place has other engines.
    """
    folders = [bundle / backend]
    try:
        root = user_folder("engines")
    except MissingPackageError:
        return folders
    digest = hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()[:32]
    return [*folders, root / digest / backend]


def find_engines(bundle: Path, backend: str) -> Path | None:
    """The first of the folders that holds engines."""
    return next((folder for folder in engine_folders(bundle, backend) if (folder / SIDECAR).is_file()), None)


def place_for(bundle: Path, backend: str) -> Path:
    """Where engines are to be built: where they are, else in the bundle; for the bundle of an install in the user's cache folder."""
    found = find_engines(bundle, backend)
    if found is not None:
        return found
    inside, *cache = engine_folders(bundle, backend)
    if not _is_bundled(bundle):
        return inside
    if not cache:
        missing = "the install is not written to, and the user's cache folder is found with platformdirs, which is not installed."
        raise MissingPackageError(missing, "Run: pip install platformdirs, or name a folder with -o FOLDER.")
    return cache[0]


def _is_bundled(bundle: Path) -> bool:
    try:
        return bundle.resolve() == bundled_folder().resolve()
    except InputError:
        return False


def staleness(sidecar: Sidecar, bundle: Bundle, version: str | None) -> str:
    """Why the engines do not belong to this bundle or to the installed TensorRT; empty when they do.

    Args:
        version: of the installed package; None if that is not to be looked at.
    """
    changed = sorted(name for name, entry in bundle.manifest.files.items() if sidecar.source.get(name) != entry.sha256)
    if changed:
        return f"the engines in {sidecar.folder} were built from another bundle: {changed[0]} differs"
    if version is not None and sidecar.version != version:
        return f"the engines in {sidecar.folder} were built with TensorRT {sidecar.version}; installed is {version}"
    return ""
