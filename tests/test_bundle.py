"""Opening a bundle: what is accepted, and every way in which one can be incomplete, damaged, foreign or hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import TINY_MODEL

from hart_edge.runtime import file_hashes
from hart_edge.runtime.bundle import Bundle, Manifest
from hart_edge.runtime.errors import BundleError
from hart_edge.runtime.options import Options
from hart_edge.runtime.spec import ENGINES, ModelSpec

DIGEST = "0" * 64


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle(folder)
    return str(caught.value)


def test_good_bundle_opens(bundle_folder: Path, tiny_spec: ModelSpec) -> None:
    bundle = Bundle(str(bundle_folder))
    assert bundle.spec == tiny_spec
    assert bundle.manifest.precision == "fp32"
    assert bundle.damage() == {}
    assert bundle.bytes == sum(path.stat().st_size for path in bundle_folder.iterdir() if path.name != "manifest.json")


def test_manifest_round_trip(bundle_folder: Path) -> None:
    raw = manifest_of(bundle_folder)
    assert json.loads(json.dumps(Manifest.from_json(raw).to_json())) == raw


def test_defaults_round_trip_and_become_options(bundle_folder: Path, edit_manifest) -> None:
    assert Bundle(bundle_folder).defaults == Options()
    edit_manifest(defaults={"cfg": 3.0, "top_k": 19})
    bundle = Bundle(bundle_folder)
    assert bundle.manifest.to_json()["defaults"] == {"cfg": 3.0, "top_k": 19}
    assert bundle.defaults == Options(cfg=3.0, top_k=19)


def test_manifest_from_before_defaults_were_known_loads(bundle_folder: Path) -> None:
    raw = manifest_of(bundle_folder)
    del raw["defaults"]
    assert Manifest.from_json(raw).defaults == {}


@pytest.mark.parametrize(
    ("defaults", "named"),
    [({"colour": 1}, "unknown setting 'colour'"), ({"cfg": -1}, "cfg is -1"), ({"smooth": 1}, "smooth is 1"), (7, "")],
)
def test_unusable_defaults_are_refused(bundle_folder: Path, edit_manifest, defaults: Any, named: str) -> None:
    edit_manifest(defaults=defaults)
    message = refusal(bundle_folder)
    assert "manifest.json" in message and named in message


def test_text_side_round_trip(bundle_folder: Path) -> None:
    raw = manifest_of(bundle_folder) | {"text": {"pad_token_id": 19, "system_prompt_sha256": DIGEST}}
    manifest = Manifest.from_json(raw)
    assert (manifest.text.pad_token_id, manifest.text.system_prompt_sha256) == (19, DIGEST)
    assert manifest.to_json()["text"] == raw["text"]


def test_engines_and_files_are_found_by_name(bundle_folder: Path) -> None:
    bundle = Bundle(bundle_folder)
    assert bundle.engine("decoder") == bundle_folder / "decoder.onnx"
    assert bundle.file("weights.safetensors") == bundle_folder / "weights.safetensors"


def test_engine_that_the_bundle_lacks_has_a_remedy(bundle_folder: Path) -> None:
    with pytest.raises(BundleError, match="no text_encoder engine") as caught:
        Bundle(bundle_folder).engine("text_encoder")
    assert "--text-model" in caught.value.hint


def test_file_that_is_not_listed_is_refused(bundle_folder: Path) -> None:
    (bundle_folder / "stray").write_bytes(b"")
    with pytest.raises(BundleError, match="does not list stray"):
        Bundle(bundle_folder).file("stray")


def test_constants_are_read_by_name(bundle_folder: Path) -> None:
    constants = Bundle(bundle_folder).constants("constants.codebook")
    np.testing.assert_array_equal(constants["constants.codebook"], np.arange(22, dtype=np.float32).reshape(11, 2))


def test_missing_constant_is_a_bundle_error(bundle_folder: Path) -> None:
    with pytest.raises(BundleError, match=r"constants\.absent"):
        Bundle(bundle_folder).constants("constants.absent")


def test_missing_folder(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent")


def test_folder_without_manifest(tmp_path: Path) -> None:
    assert "has no manifest.json" in refusal(tmp_path)


def test_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_bytes(b"not a folder")
    assert "cannot be read" in refusal(tmp_path / "bundle")


@pytest.mark.parametrize("content", [b"", b"{", b"{'schema': 1}", b"\xff\xfe", b'{"schema": 1', b"[" * 100_000])
def test_manifest_that_is_no_json(bundle_folder: Path, content: bytes) -> None:
    (bundle_folder / "manifest.json").write_bytes(content)
    assert "manifest.json cannot be read" in refusal(bundle_folder)


@pytest.mark.parametrize("content", ["[]", "null", '"text"', "19"])
def test_manifest_that_is_no_object(bundle_folder: Path, content: str) -> None:
    (bundle_folder / "manifest.json").write_text(content)
    assert "not a JSON object" in refusal(bundle_folder)


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_other_schema(bundle_folder: Path, edit_manifest, schema: Any) -> None:
    edit_manifest(schema=schema)
    assert f"schema {schema!r}; this hart-edge reads schema 1" in refusal(bundle_folder)


@pytest.mark.parametrize("noise", ["philox4x32-10/2", "", None])
def test_other_noise_version(bundle_folder: Path, edit_manifest, noise: Any) -> None:
    edit_manifest(noise=noise)
    assert f"noise {noise!r}; this hart-edge makes" in refusal(bundle_folder)


@pytest.mark.parametrize("key", ["schema", "noise", "precision", "model", "text", "engines", "files", "source", "tools"])
def test_missing_manifest_key_is_named(bundle_folder: Path, key: str) -> None:
    raw = manifest_of(bundle_folder)
    del raw[key]
    (bundle_folder / "manifest.json").write_text(json.dumps(raw))
    assert key in refusal(bundle_folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": None},
        {"model": []},
        {"model": 19},
        {"engines": None},
        {"engines": 19},
        {"files": None},
        {"files": []},
        {"files": {"weights.safetensors": None}},
        {"files": {"weights.safetensors": {}}},
        {"files": {"weights.safetensors": {"bytes": "many", "sha256": DIGEST}}},
        {"files": {"weights.safetensors": {"bytes": float("inf"), "sha256": DIGEST}}},
        {"text": []},
        {"text": {}},
        {"text": {"colour": 1}},
        {"source": None},
        {"tools": 19},
    ],
)
def test_malformed_manifest_part(bundle_folder: Path, edit_manifest, changes: dict[str, Any]) -> None:
    edit_manifest(**changes)
    refusal(bundle_folder)


@pytest.mark.parametrize("patch_nums", [19, "135", [1, "3", 5], [1, 3, 5.5], [1, 5, 3], [], None])
def test_malformed_patch_nums(bundle_folder: Path, edit_manifest, patch_nums: Any) -> None:
    edit_manifest(model=TINY_MODEL | {"patch_nums": patch_nums})
    refusal(bundle_folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"noise": ""},
        {"precision": "int4"},
        {"engines": {}},
        {"files": None},
        {"files": {"../x": {"bytes": 0, "sha256": DIGEST}}},
        {"model": {}},
        {"model": TINY_MODEL | {"depth": 0}},
        {"model": TINY_MODEL | {"patch_nums": [3, 1]}},
    ],
)
def test_every_refusal_names_a_remedy(bundle_folder: Path, edit_manifest, changes: dict[str, Any]) -> None:
    edit_manifest(**changes)
    with pytest.raises(BundleError) as caught:
        Bundle(bundle_folder)
    assert caught.value.hint


def test_model_size_of_zero_is_named(bundle_folder: Path, edit_manifest) -> None:
    edit_manifest(model=TINY_MODEL | {"depth": 0})
    assert "depth = 0" in refusal(bundle_folder)


@pytest.mark.parametrize("precision", ["int4", "FP32", None, []])
def test_unknown_precision(bundle_folder: Path, edit_manifest, precision: Any) -> None:
    edit_manifest(precision=precision)
    assert f"precision {precision!r}" in refusal(bundle_folder)


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_missing_engine_is_named(bundle_folder: Path, edit_manifest, engine: str) -> None:
    edit_manifest(engines={name: file for name, file in manifest_of(bundle_folder)["engines"].items() if name != engine})
    assert f"engines missing: ['{engine}']" in refusal(bundle_folder)


@pytest.mark.parametrize("file", ["foreign.onnx", "../decoder.onnx", 19, None, ["decoder.onnx"]])
def test_engine_file_that_is_not_listed(bundle_folder: Path, edit_manifest, file: Any) -> None:
    edit_manifest(engines=manifest_of(bundle_folder)["engines"] | {"decoder": file})
    refusal(bundle_folder)


def test_weights_must_be_listed(bundle_folder: Path, edit_manifest) -> None:
    files = manifest_of(bundle_folder)["files"]
    del files["weights.safetensors"]
    edit_manifest(files=files)
    assert "weights.safetensors must be listed" in refusal(bundle_folder)


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "a/../../secret", "..", "..\\secret", "a\\b", "C:secret", "C:/secret", "C:\\secret", "", ".", "a\0b"],
)
def test_file_name_that_leaves_the_folder(bundle_folder: Path, edit_manifest, name: str) -> None:
    (bundle_folder.parent / "secret").write_bytes(b"")
    edit_manifest(files=manifest_of(bundle_folder)["files"] | {name: {"bytes": 0, "sha256": DIGEST}})
    assert f"file name {name!r} leaves the bundle folder" in refusal(bundle_folder)


def test_link_that_leaves_the_folder(bundle_folder: Path) -> None:
    path = bundle_folder / "decoder.onnx"
    outside = bundle_folder.parent / "outside.onnx"
    path.rename(outside)
    path.symlink_to(outside)
    assert "decoder.onnx is a link that leaves the folder" in refusal(bundle_folder)


def test_link_inside_the_folder_is_accepted(bundle_folder: Path) -> None:
    path = bundle_folder / "decoder.onnx"
    path.rename(bundle_folder / "moved.onnx")
    path.symlink_to("moved.onnx")
    assert Bundle(bundle_folder).damage() == {}


def test_linked_bundle_folder_is_accepted(bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle_folder)
    assert Bundle(tmp_path / "link").damage() == {}


def test_missing_file(bundle_folder: Path) -> None:
    (bundle_folder / "decoder.onnx").unlink()
    assert "decoder.onnx is missing" in refusal(bundle_folder)


def test_truncated_file(bundle_folder: Path) -> None:
    path = bundle_folder / "weights.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    assert f"weights.safetensors has {size - 1} bytes, the manifest says {size}" in refusal(bundle_folder)


def test_flipped_bit(bundle_folder: Path) -> None:
    path = bundle_folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert "weights.safetensors has another SHA-256" in refusal(bundle_folder)


def test_unchecked_bundle_opens_and_still_tells_its_damage(bundle_folder: Path) -> None:
    (bundle_folder / "decoder.onnx").write_bytes(b"short")
    damage = Bundle(bundle_folder, check_files=False).damage()
    assert list(damage) == ["decoder.onnx"]
    assert "has 5 bytes" in damage["decoder.onnx"]


def test_folder_in_place_of_a_file(bundle_folder: Path) -> None:
    (bundle_folder / "decoder.onnx").unlink()
    (bundle_folder / "decoder.onnx").mkdir()
    assert "decoder.onnx" in refusal(bundle_folder)


def test_all_damage_is_reported_at_once(bundle_folder: Path) -> None:
    (bundle_folder / "decoder.onnx").unlink()
    (bundle_folder / "context.onnx").write_bytes(b"")
    message = refusal(bundle_folder)
    assert "decoder.onnx is missing" in message
    assert "context.onnx has 0 bytes" in message


def test_unlisted_files_do_not_matter(bundle_folder: Path) -> None:
    (bundle_folder / "notes.txt").write_text("mine")
    assert Bundle(bundle_folder).damage() == {}


@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0{", b"\xff" * 111])
def test_broken_weights_are_a_bundle_error(bundle_folder: Path, content: bytes) -> None:
    bundle = Bundle(bundle_folder)
    (bundle_folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(BundleError, match=r"weights\.safetensors"):
        bundle.constants("constants.codebook")


def test_a_remembered_hash_does_not_hide_damage(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The remembered hash belongs to the file as it was; a changed one is read again, and a full check always reads."""
    monkeypatch.setattr(file_hashes, "LARGE", 1)
    monkeypatch.setattr(file_hashes, "SETTLED", -1.0)
    monkeypatch.setattr(file_hashes, "user_folder", lambda name: tmp_path / name)
    for _ in range(2):
        assert Bundle(bundle_folder, remember=True).damage(remember=True) == {}
    assert list((tmp_path / "hashes").glob("*.bin"))
    path = bundle_folder / "decoder.onnx"
    path.write_bytes(path.read_bytes()[::-1])
    for remember in (True, False):
        with pytest.raises(BundleError, match=r"decoder\.onnx has another SHA-256"):
            Bundle(bundle_folder, remember=remember)
