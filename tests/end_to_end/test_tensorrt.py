"""TensorRT-RTX engines of a bundle that was just exported."""

from __future__ import annotations

from pathlib import Path

from hart_edge.export.build import build_bundle
from hart_edge.runtime import Bundle


def test_an_exported_bundle_builds(bundle_root_fp16: Path, tmp_path: Path) -> None:
    bundle = Bundle(bundle_root_fp16)
    sidecar = build_bundle(bundle, tmp_path / "engines", targets="sm86", batch=3)
    files = {path.name for path in (tmp_path / "engines").iterdir()}
    assert files == {"engines.json", *(f"{name}.engine" for name in bundle.manifest.engines)}
    depth = bundle.spec.depth
    transformer = sidecar["engines"]["transformer"]
    assert (transformer["attention"], transformer["attention_lengths"], transformer["kv_cache_updates"]) == (depth, depth, 2 * depth)
    assert sidecar["engines"]["transition"]["rewrites"] == {}  # products stay products without sm75
