"""TensorRT-RTX engines of bundles that were just exported."""

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


def test_an_exported_bundle_builds_with_plugins(bundle_root_fp16: Path, tmp_path: Path) -> None:
    """The passes know the graphs that this release exports, at other sizes than the bundled model's."""
    bundle = Bundle(bundle_root_fp16)
    engines = build_bundle(bundle, tmp_path / "engines", targets="sm86", batch=1, plugins="all")["engines"]
    depth = bundle.spec.depth
    found = {name: {op: entry["nodes"] for op, entry in facts["plugins"].items()} for name, facts in engines.items()}
    assert found["transformer"] == {"AddRmsNorm": 2 * depth, "SplitRotary": depth, "SwiGlu": depth}
    assert found["residual_condition"] == {"AddRmsNorm": 1}
    assert found["residual_step"]["LayerNormModulate"] >= 1 and found["decoder"]["GroupNormSilu"] >= 10
    assert found["text_encoder"]["SwiGlu"] * 2 == found["text_encoder"]["AddRmsNorm"] > 0
    assert found["context"] == found["transition"] == {}
