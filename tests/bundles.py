"""A tiny bundle's manifest, written by hand so that it does not follow the code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hart_edge.runtime.noise import NOISE_VERSION

TINY_MODEL: dict[str, Any] = {  # odd sizes throughout
    "patch_nums": [1, 3, 5],
    "phi_index": [0, 1],
    "context_tokens": 7,
    "context_dim": 9,
    "depth": 2,
    "width": 12,
    "heads": 3,
    "codebook_size": 11,
    "latent_channels": 2,
    "diffusion_width": 13,
    "diffusion_steps": 8,
    "downsample": 16,
}


def write_manifest(folder: Path) -> None:
    """A manifest of schema 1 for all files of the folder."""
    files = sorted(path for path in folder.iterdir() if path.name != "manifest.json")
    raw = {
        "schema": 1,
        "noise": NOISE_VERSION,
        "precision": "fp32",
        "model": TINY_MODEL,
        "text": None,
        "defaults": {},
        "engines": {path.stem: path.name for path in files if path.suffix == ".onnx"},
        "files": {p.name: {"bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()} for p in files},
        "source": {"checkpoint": "tiny"},
        "tools": {"hart-edge": "0"},
    }
    (folder / "manifest.json").write_text(json.dumps(raw))
