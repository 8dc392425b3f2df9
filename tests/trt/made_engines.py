"""Engine folders as `hart-edge build` makes them, without building: each file is a header and the name of its graph."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from hart_edge.export.build.graph import read_graph
from hart_edge.export.build.shapes import dimension_ranges, shape_range
from hart_edge.runtime import Bundle

SM75_TO_120 = 1 | 2 | 4 | 8 | 16
TARGETS = ["sm75", "sm80", "sm86", "sm89", "sm120"]


def engine_file(name: str, version: tuple[int, ...] = (1, 7, 1, 116), mask: int = SM75_TO_120, magic: bytes = b"vtrt") -> bytes:
    """The header of TensorRT-RTX 1.7 and, in place of the engine, its name."""
    content = name.encode()
    return struct.pack("<4s12xQ4B4sI4x", magic, 40 + len(content), *version, b"tvtr", mask) + content


def graph_of(bundle: Bundle, content: bytes) -> Path:
    """The ONNX file that a file of `engine_file` stands for."""
    return bundle.engine(content[40:].decode())


def make_engines(folder: Path, bundle: Bundle, backend: str = "tensorrt-rtx", batch: int = 2, **changes: Any) -> Path:
    """A folder of all engines; `changes` replace entries of `engines.json`."""
    folder.mkdir(parents=True)
    ranges = dimension_ranges(bundle.spec, batch)
    engines = {}
    for name in bundle.manifest.engines:
        content = engine_file(name)
        (folder / f"{name}.engine").write_bytes(content)
        graph = read_graph(bundle.engine(name), ("sm86",))
        inputs = [vars(b) | dict(zip(("min", "opt", "max"), shape_range(b.shape, ranges), strict=True)) for b in graph.inputs]
        engines[name] = {
            "file": f"{name}.engine",
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "inputs": inputs,
            "outputs": [vars(b) for b in graph.outputs],
            "plugins": {},
        }
    module = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}[backend]
    sidecar = {
        "schema": 2,
        "backend": backend,
        "module": module,
        "targets": TARGETS if backend == "tensorrt-rtx" else ["native"],
        "capability": None if backend == "tensorrt-rtx" else 80,
        "precision": "fp16",
        "batch": batch,
        "source": {name: entry.sha256 for name, entry in bundle.manifest.files.items()},
        "tools": {module: "1.7.1.116"},
        "engines": engines,
    }
    (folder / "engines.json").write_text(json.dumps(sidecar | changes))
    return folder


def edit(folder: Path, name: str, **changes: Any) -> None:
    """Replace facts of one engine in `engines.json`."""
    raw = json.loads((folder / "engines.json").read_text())
    raw["engines"][name] |= changes
    (folder / "engines.json").write_text(json.dumps(raw))


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Another file for an engine, about which `engines.json` is right."""
    (folder / f"{name}.engine").write_bytes(content)
    edit(folder, name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
