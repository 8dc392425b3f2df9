"""Every engine of the bundled model, built for every target with the real package: what the sidecar says, and the files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import onnx
import pytest

from hart_edge.export.build import build_bundle, process
from hart_edge.export.build import run as run_module
from hart_edge.export.build.shapes import dimension_ranges
from hart_edge.export.build.worker import BuildJob, EngineJob
from hart_edge.plugins.graph_ops import GRAPH_OPS
from hart_edge.runtime import Bundle
from hart_edge.runtime.bundle import SIDECAR, bundled_folder
from hart_edge.runtime.cli.app import run
from hart_edge.runtime.errors import BundleError, EngineError, InputError
from hart_edge.runtime.files import sha256_of

DEPTH, TEXT_LAYERS = 6, 3
PLUGINS: dict[str, dict[str, dict[str, int]]] = {
    "none": {},
    "all": {
        "text_encoder": {"AddRmsNorm": 2 * TEXT_LAYERS, "SwiGlu": TEXT_LAYERS},
        "transformer": {"AddRmsNorm": 2 * DEPTH, "SplitRotary": DEPTH, "SwiGlu": DEPTH},
        "residual_condition": {"AddRmsNorm": 1},
        "residual_step": {"LayerNormModulate": 3},
        "decoder": {"GroupNormSilu": 35},
    },
}
"""Nodes of every operator by engine, by what `--plugins` says."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Built for every target, without plugins and with all of them."""
    root = tmp_path_factory.mktemp("engines")
    for plugins in PLUGINS:
        assert run(["build", "-o", str(root / plugins), "--batch", "2", "--plugins", plugins]) == 0
    return {plugins: root / plugins for plugins in PLUGINS}


@pytest.fixture(params=["none", "all"])
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


@pytest.fixture
def sidecar(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / SIDECAR).read_text()))


def test_it_says_what_was_built_and_from_what(sidecar: dict[str, Any]) -> None:
    bundle = Bundle(bundled_folder())
    assert sidecar["backend"] == "tensorrt-rtx" and sidecar["precision"] == "fp16" and sidecar["batch"] == 2
    assert sidecar["targets"] == ["sm75", "sm80", "sm86", "sm89", "sm120"]
    assert sidecar["source"] == {name: entry.sha256 for name, entry in bundle.manifest.files.items()}
    assert sorted(sidecar["tools"]) == ["hart-edge", "onnx", "tensorrt_rtx"]
    assert sorted(sidecar["engines"]) == sorted(bundle.manifest.engines)


def test_files_are_as_it_says(folder: Path, sidecar: dict[str, Any]) -> None:
    files = {facts["file"]: facts for facts in sidecar["engines"].values()}
    assert sorted(path.name for path in folder.iterdir()) == sorted([*files, SIDECAR])
    for name, facts in files.items():
        header = (folder / name).read_bytes()[:40]
        assert sha256_of(folder / name) == facts["sha256"]
        assert header[:4] == b"vtrt"
        assert struct.unpack_from("<Q", header, 16)[0] == facts["bytes"] == (folder / name).stat().st_size
        assert struct.unpack_from("<I", header, 32)[0] == 1 | 2 | 4 | 8 | 16  # sm75, 80, 86, 89, 120


def test_caches_in_place_and_fused_attention(sidecar: dict[str, Any]) -> None:
    for name, facts in sidecar["engines"].items():
        attention = {"transformer": DEPTH, "text_encoder": TEXT_LAYERS}.get(name, 0)
        updates = 2 * DEPTH if name == "transformer" else 0
        assert facts["attention"] == facts["layers"].get("attention_input", 0) == attention
        assert facts["attention_lengths"] == (DEPTH if name == "transformer" else 0)
        assert facts["kv_cache_updates"] == facts["layers"].get("kv_cache_update", 0) == updates


def test_plugins_are_those_that_were_asked_for(folders: dict[str, Path]) -> None:
    """All nodes of an operator, in Python: their layers are in the network, and the norms and gates that they replace are not."""
    for plugins, folder in folders.items():
        for name, facts in json.loads((folder / SIDECAR).read_text())["engines"].items():
            assert facts["plugins"] == {op: {"nodes": count, "form": "python"} for op, count in PLUGINS[plugins].get(name, {}).items()}
            assert facts["layers"].get("plugin_v3", 0) == sum(PLUGINS[plugins].get(name, {}).values())
            assert all(op.encode() in (folder / facts["file"]).read_bytes() for op in facts["plugins"])


def test_two_builds_are_the_same_to_the_byte(folders: dict[str, Path], tmp_path: Path) -> None:
    """Every engine. Where the scheduler let one thread overtake another, a third build agrees with the first or the second."""
    sidecar = json.loads((folders["all"] / SIDECAR).read_text())
    if not all(facts["repeatable"] for facts in sidecar["engines"].values()):
        pytest.skip("needs a system that lets a process turn address randomisation off and choose its scheduler")
    bundle, wanted = Bundle(bundled_folder(), check_files=False), {name: [facts["sha256"]] for name, facts in sidecar["engines"].items()}
    for _ in range(2):
        remaining = [name for name, digests in wanted.items() if len(set(digests)) == len(digests)]
        jobs = tuple(EngineJob(name, bundle.engine(name).absolute(), tmp_path / name) for name in remaining)
        list(process.run(BuildJob("tensorrt-rtx", tuple(sidecar["targets"]), dimension_ranges(bundle.spec, 2), jobs, tuple(GRAPH_OPS))))
        for name in remaining:
            wanted[name].append(sha256_of(tmp_path / name))
    assert all(len(set(digests)) < len(digests) for digests in wanted.values()), wanted


@pytest.mark.parametrize("name", ["text_encoder", "context", "transformer", "transition", "residual_condition", "residual_step", "decoder"])
def test_bindings_are_those_of_the_bundle(name: str, sidecar: dict[str, Any]) -> None:
    facts, graph = sidecar["engines"][name], onnx.load(bundled_folder() / f"{name}.onnx", load_external_data=False).graph
    for declared, values in ((facts["inputs"], graph.input), (facts["outputs"], graph.output)):
        shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        assert {binding["name"]: binding["shape"] for binding in declared} == shapes


def test_ranges_of_the_transformer(sidecar: dict[str, Any]) -> None:
    inputs = {binding["name"]: binding for binding in sidecar["engines"]["transformer"]["inputs"]}
    assert [inputs["x"][key] for key in ("min", "opt", "max")] == [[1, 4, 256], [2, 256, 256], [4, 256, 256]]
    assert [inputs["k_cache_5"][key] for key in ("min", "max")] == [[1, 4, 711, 64], [4, 4, 711, 64]]
    assert inputs["length"]["dtype"] == "int64" and inputs["x"]["dtype"] == "float16"


def test_a_plugin_without_a_place_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle without a decoder's norms, as the pass sees it."""
    monkeypatch.setattr(process, "run", lambda job: [("built", {"plugins": {}}) for _ in job.engines])
    monkeypatch.setattr(run_module, "_file_facts", lambda path: {"file": path.name, "bytes": 0, "sha256": "", "plugins": {}})
    everything = build_bundle(Bundle(bundled_folder(), check_files=False), tmp_path / "all", plugins="all")
    assert not any(facts["plugins"] for facts in everything["engines"].values())
    with pytest.raises(EngineError, match="have no place for the plugin SwiGlu; they have none"):
        build_bundle(Bundle(bundled_folder(), check_files=False), tmp_path / "out", plugins="SwiGlu")
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", "-o", str(folder)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_foreign_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="holds no engines and is not overwritten"):
        build_bundle(Bundle(bundled_folder(), check_files=False), tmp_path, overwrite=True)
    assert (tmp_path / "letter.txt").exists()


def test_an_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        build_bundle(Bundle(bundled_folder(), check_files=False), tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x", "--target", "sm90"], "target 'sm90'"),
        (["-o", "x", "--precision", "int8"], "is fp16; expected int8"),
        (["-o", "x", "--precision", "int4"], "precision 'int4' cannot be built"),
        (["-o", "x", "--plugins", "SwiGlu,Attention"], "plugin 'Attention' is unknown"),
        (["-o", "x", "--batch", "0"], "batch is 0"),
        (["-o", "x", "--backend", "cuda"], "backend 'cuda' is unknown"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["build", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_fp32_bundle(bundle_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is fp32; expected fp16 or int8 or fp8"):
        build_bundle(Bundle(bundle_folder), tmp_path / "out")


def test_a_damaged_bundle(bundle_folder: Path) -> None:
    (bundle_folder / "decoder.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"decoder\.onnx has 0 bytes"):
        Bundle(bundle_folder)
