"""The bundle: a folder of engines, weights and tokenizer with a manifest. Reads and checks it; runs nothing.

Data only: no pickles, no code. Every file is named in the manifest with its size and SHA-256; names stay inside the
folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from .engine import Array
from .errors import BundleError, InputError
from .file_hashes import remembered_sha256
from .files import sha256_of
from .noise import NOISE_VERSION
from .options import Options, parse_options
from .spec import ENGINES, REEXPORT, ModelSpec

SCHEMA = 1
MANIFEST = "manifest.json"
CERTIFICATE = "accuracy.json"
SIDECAR = "engines.json"  # beside engines that were built from a bundle
WEIGHTS = "weights.safetensors"
FLOATS = ("fp32", "fp16")
QUANTIZED = ("int8-weight-only", "int8-w8a8", "fp8")
PRECISIONS = FLOATS + QUANTIZED
PACKAGE = Path(__file__).parent  # where the bundle of this install lies, in the folder `bundled`


@dataclass(frozen=True)
class FileEntry:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class TextSpec:
    """Text side of a bundle: pad token id of the tokenizer and the hash of the system prompt, if one is baked in."""

    pad_token_id: int
    system_prompt_sha256: str | None = None


@dataclass(frozen=True)
class Manifest:
    """Contents of `manifest.json`; see `to_json` for the keys.

    `defaults` holds the model's own sampling settings, fields of `Options`; what it leaves out is as published.
    `quantization` says how the bundle was quantised (`hart-edge calibrate`), None for a bundle of floats.
    """

    model: ModelSpec
    precision: str
    engines: dict[str, str]
    files: dict[str, FileEntry]
    text: TextSpec | None
    source: dict[str, str] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, Any] | None = None

    @property
    def floats(self) -> str:
        """The type that everything is in which is not quantised, and that the engines' bindings have: "fp32" or "fp16"."""
        return self.precision if self.quantization is None else str(self.quantization["floats"])

    @property
    def folded(self) -> tuple[str, ...]:
        """Engines whose weights ONNX Runtime should dequantise once, when it loads them: it has no kernel that takes them as stored."""
        return () if self.quantization is None else tuple(self.quantization["folded"])

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "noise": NOISE_VERSION,
            "precision": self.precision,
            "model": self.model.to_json(),
            "text": None if self.text is None else vars(self.text),
            "defaults": self.defaults,
            "engines": self.engines,
            "files": {name: vars(entry) for name, entry in self.files.items()},
            "source": self.source,
            "tools": self.tools,
            **({} if self.quantization is None else {"quantization": self.quantization}),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Manifest:
        """Parse and validate; BundleError says which part is wrong."""
        _check_versions(raw)
        try:
            manifest = cls(
                model=ModelSpec.from_json(raw["model"]),
                precision=raw["precision"],
                engines={str(name): str(file) for name, file in raw["engines"].items()},
                files={str(name): FileEntry(int(entry["bytes"]), str(entry["sha256"])) for name, entry in raw["files"].items()},
                text=None if raw["text"] is None else TextSpec(**raw["text"]),
                source=dict(raw["source"]),
                tools=dict(raw["tools"]),
                defaults=dict(raw.get("defaults", {})),
                quantization=None if raw.get("quantization") is None else dict(raw["quantization"]),
            )
            manifest._check()
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise BundleError(f"{MANIFEST} is malformed: {type(error).__name__}: {error}.", REEXPORT) from error
        return manifest

    def _check(self) -> None:
        if self.precision not in PRECISIONS:
            raise BundleError(f"{MANIFEST}: precision {self.precision!r}; expected one of {PRECISIONS}.", REEXPORT)
        self._check_quantization()
        missing = [name for name in ENGINES[1:] if name not in self.engines]
        foreign = [file for file in self.engines.values() if file not in self.files]
        if missing or foreign or WEIGHTS not in self.files:
            raise BundleError(
                f"{MANIFEST}: engines missing: {missing}; engine files not listed: {foreign}; {WEIGHTS} must be listed.", REEXPORT
            )
        for name in self.files:
            _check_name(name)
        try:
            parse_options(self.defaults)
        except InputError as error:
            raise BundleError(f"{MANIFEST}: defaults: {error.message}", REEXPORT) from error

    def _check_quantization(self) -> None:
        """A quantised bundle, and no other, says what its floats are and which engines are folded."""
        if (self.precision in QUANTIZED) != (self.quantization is not None):
            raise BundleError(f"{MANIFEST}: precision {self.precision!r} does not go with quantization {self.quantization!r}.", REEXPORT)
        unknown = [name for name in self.folded if name not in self.engines]
        if self.floats not in FLOATS or unknown:
            raise BundleError(f"{MANIFEST}: quantization: floats {self.floats!r}, folded engines {unknown}; expected {FLOATS}.", REEXPORT)


class Bundle:
    """An opened bundle folder.

    Args:
        root: the folder.
        check_files: compare every file's size and SHA-256 with the manifest; BundleError names what differs.
        remember: take a large file's SHA-256 from an earlier time, unless something about the file has changed since.
    """

    def __init__(self, root: Path | str, check_files: bool = True, remember: bool = False) -> None:
        self.root = Path(root)
        self.manifest = _read_manifest(self.root)
        damaged = self.damage(remember) if check_files else {}
        if damaged:
            raise BundleError(
                f"bundle {self.root} is damaged: {'; '.join(damaged.values())}.", "Copy it again from its source or export it again."
            )

    @property
    def spec(self) -> ModelSpec:
        return self.manifest.model

    @property
    def defaults(self) -> Options:
        """The settings that this model is meant to be sampled with."""
        return parse_options(self.manifest.defaults)

    def file(self, name: str) -> Path:
        """Path of a file that the manifest lists."""
        if name not in self.manifest.files:
            raise BundleError(f"{MANIFEST} of {self.root} does not list {name}.", REEXPORT)
        return self.root / name

    def engine(self, name: str) -> Path:
        """Path of an engine's ONNX file; BundleError when the bundle was made without it."""
        if name not in self.manifest.engines:
            raise BundleError(
                f"bundle {self.root} has no {name} engine.", "Export it with a text model: `hart-edge export … --text-model …`."
            )
        return self.file(self.manifest.engines[name])

    def damage(self, remember: bool = False) -> dict[str, str]:
        """Files that are missing or differ from the manifest, with the reason; empty when all is well. remember: see above."""
        hash_of = remembered_sha256 if remember else sha256_of
        with ThreadPoolExecutor() as pool:
            reasons = pool.map(lambda name: _damage(self.root, name, self.manifest.files[name], hash_of), self.manifest.files)
        return {name: reason for name, reason in zip(self.manifest.files, reasons, strict=True) if reason}

    def constants(self, *names: str) -> dict[str, Array]:
        """Named tensors of the weights file."""
        from safetensors import SafetensorError, safe_open  # not above: whoever only reads a manifest has no use for it

        try:
            with safe_open(self.file(WEIGHTS), framework="numpy") as file:
                return {name: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise BundleError(f"{self.root / WEIGHTS}: {error}.", REEXPORT) from error

    @property
    def bytes(self) -> int:
        """Size of all listed files."""
        return sum(entry.bytes for entry in self.manifest.files.values())


def folded_engines(root: Path) -> tuple[str, ...]:
    """`Manifest.folded` of the bundle in a folder; none where there is no bundle."""
    return _read_manifest(root).folded if (root / MANIFEST).is_file() else ()


def bundled_folder() -> Path:
    """The bundle that came with this install; InputError when it has none."""
    folder = PACKAGE / "bundled"
    if not (folder / MANIFEST).is_file():
        raise InputError(
            f"no bundle was given and this install has none of its own; expected one in {folder}.",
            "Install hart-edge again, or name a bundle made with `hart-edge export CHECKPOINT -o BUNDLE`.",
        )
    return folder


def _read_manifest(root: Path) -> Manifest:
    path = root / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = "does not exist" if not root.exists() else f"has no {MANIFEST}"
        raise BundleError(f"bundle {root} {what}.", "Make one with `hart-edge export CHECKPOINT -o BUNDLE`.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}.", REEXPORT) from error
    if not isinstance(raw, dict):
        raise BundleError(f"{path} is not a JSON object.", REEXPORT)
    return Manifest.from_json(raw)


def _check_versions(raw: Mapping[str, Any]) -> None:
    if raw.get("schema") != SCHEMA:
        raise BundleError(f"{MANIFEST}: schema {raw.get('schema')!r}; this hart-edge reads schema {SCHEMA}.", REEXPORT)
    if raw.get("noise") != NOISE_VERSION:
        raise BundleError(f"{MANIFEST}: noise {raw.get('noise')!r}; this hart-edge makes {NOISE_VERSION!r}.", REEXPORT)


def _check_name(name: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name or "\0" in name:
        raise BundleError(
            f"{MANIFEST}: file name {name!r} leaves the bundle folder.", "Do not use this bundle; get it from a source you trust."
        )


def _damage(root: Path, name: str, entry: FileEntry, hash_of: Callable[[Path], str]) -> str:
    path = root / name
    try:
        if not path.resolve().is_relative_to(root.resolve()):
            return f"{name} is a link that leaves the folder"
        size = path.stat().st_size
        if size != entry.bytes:
            return f"{name} has {size} bytes, the manifest says {entry.bytes}"
        if hash_of(path) != entry.sha256:
            return f"{name} has another SHA-256 than the manifest says"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror or error}"
    return ""
