"""What an exported bundle looks like, and how an export ends."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir
import pytest
import torch
from safetensors import safe_open

from hart_edge.export.checkpoint import Checkpoint, load_checkpoint
from hart_edge.export.engines import DECODER_OPSET, OPSET, engine_builders, model_spec, trace_of
from hart_edge.export.exporter import export_bundle, open_text
from hart_edge.export.trace import trace
from hart_edge.runtime import Bundle, CheckpointError, InputError
from hart_edge.runtime.bundle import WEIGHTS
from hart_edge.runtime.spec import ENGINES


def test_bundle_lists_every_file_and_nothing_is_damaged(bundle_root: Path) -> None:
    bundle = Bundle(bundle_root)
    present = {path.name for path in bundle_root.iterdir()} - {"manifest.json", "accuracy.json"}
    assert present == set(bundle.manifest.files)
    assert tuple(bundle.manifest.engines) == ENGINES


@pytest.mark.parametrize("engine", ENGINES)
def test_graphs_are_valid_and_hold_no_weights(bundle_root: Path, engine: str) -> None:
    path = bundle_root / f"{engine}.onnx"
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(str(path))
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == (DECODER_OPSET if engine == "decoder" else OPSET)
    inline = [i for i in model.graph.initializer if i.data_location != onnx.TensorProto.EXTERNAL]
    assert all(len(i.SerializeToString()) < 2048 for i in inline)
    outside = {entry.value for i in model.graph.initializer for entry in i.external_data if entry.key == "location"}
    assert outside == {WEIGHTS}


def test_graphs_do_not_tell_where_they_were_made(bundle_root: Path) -> None:
    for path in bundle_root.glob("*.onnx"):
        assert str(Path(torch.__file__).parent).encode() not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()


def test_transformer_calls_cached_attention_once_per_layer_with_its_body(bundle_root: Path, checkpoint: Checkpoint) -> None:
    model = onnx.load(bundle_root / "transformer.onnx", load_external_data=False)
    calls = [node for node in model.graph.node if (node.domain, node.op_type) == ("hart", "CachedAttention")]
    assert len(calls) == checkpoint.transformer.depth
    assert [(f.domain, f.name) for f in model.functions] == [("hart", "CachedAttention")]
    assert not [node for node in model.graph.node if node.op_type in ("Attention", "TensorScatter", "Softmax")]


def test_weights_file_holds_every_parameter_of_every_module(bundle_root: Path, checkpoint: Checkpoint) -> None:
    builders = engine_builders(checkpoint.reference(), open_text(checkpoint, None), "fp32")
    want = {f"{name}.{key}" for name, build in builders.items() for key in build().state_dict()}
    with safe_open(bundle_root / WEIGHTS, framework="numpy") as stored:
        assert want <= set(stored.keys())


def test_fp16_bundle_is_about_half(bundle_root: Path, bundle_root_fp16: Path) -> None:
    ratio = (bundle_root_fp16 / WEIGHTS).stat().st_size / (bundle_root / WEIGHTS).stat().st_size
    assert 0.5 <= ratio < 0.55


@pytest.mark.parametrize("engine", ["transition", "residual_condition"])
def test_tracing_twice_gives_the_same_bytes(checkpoint: Checkpoint, engine: str) -> None:
    model = checkpoint.reference()
    build, plan = engine_builders(model, None, "fp32")[engine], trace_of(engine, model_spec(model), "fp32")
    first, second = (onnx_ir.to_proto(trace(build(), plan)).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_cancelled_export_leaves_nothing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def cancel(what: str, done: int, total: int) -> None:
        if what.startswith("tracing"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(checkpoint, tmp_path / "bundle", progress=cancel)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_nothing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def full(what: str, done: int, total: int) -> None:
        if what.startswith("tracing"):
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left on device"):
        export_bundle(checkpoint, tmp_path / "bundle", progress=full)
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_kept_without_overwrite(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        export_bundle(checkpoint, tmp_path)
    assert (tmp_path / "kept.txt").read_text() == "mine"


def test_cancelled_overwrite_keeps_the_old_bundle(checkpoint: Checkpoint, bundle_copy: Path) -> None:
    def cancel(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(checkpoint, bundle_copy, overwrite=True, progress=cancel)
    assert Bundle(bundle_copy).manifest.precision == "fp32"
    assert [path.name for path in bundle_copy.parent.iterdir()] == ["bundle"]


def test_unknown_precision_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'int4'.*fp32, fp16"):
        export_bundle(checkpoint, tmp_path / "bundle", "int4")


def test_text_model_of_another_width_is_refused(checkpoint_folder: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(checkpoint_folder)
    object.__setattr__(checkpoint.transformer, "context_dim", 48)
    for key in ("context_embed.weight", "context_norm.weight"):
        checkpoint.transformer_state[key] = checkpoint.transformer_state[key][..., :48].clone()
    with pytest.raises(CheckpointError, match="64 wide; the transformer expects 48"):
        export_bundle(checkpoint, tmp_path / "bundle")


def test_system_prompt_without_text_model_is_refused(golden_folder: Path, tmp_path: Path) -> None:
    from hart_edge.export.checkpoint import load_recorded_checkpoint

    with pytest.raises(InputError, match="no text model"):
        export_bundle(load_recorded_checkpoint(golden_folder)[0], tmp_path / "bundle", system_prompt="hello")
