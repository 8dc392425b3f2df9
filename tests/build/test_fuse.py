"""Operators of ours in place of standard ones: a fused graph computes what the original computes, and nothing else is touched."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, parser
from tolerances import assert_close

from hart_edge.export.build.fuse import FINDERS, fuse
from hart_edge.plugins.graph_ops import GRAPH_OPS
from hart_edge.runtime.bundle import bundled_folder

HEADER = '<ir_version: 10, opset_import: ["" : 24]>\n'
SIZES = {"B": 1, "R": 2, "L": 9, "rows": 256}
FUSED = {
    "text_encoder": {"AddRmsNorm": 6, "SwiGlu": 3},
    "context": {},
    "transformer": {"AddRmsNorm": 12, "SplitRotary": 6, "SwiGlu": 6},
    "transition": {},
    "residual_condition": {"AddRmsNorm": 1},
    "residual_step": {"LayerNormModulate": 3},
    "decoder": {"GroupNormSilu": 35},
}
"""Of the bundled model: 3 text layers, 6 transformer layers, 3 blocks of the diffusion MLP."""


def small(text: str) -> ModelProto:
    return onnx.shape_inference.infer_shapes(parser.parse_model(HEADER + text))


def session(model: ModelProto | str) -> onnxruntime.InferenceSession:
    source = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])


def number(dimension: str) -> int:
    """ "2*rows" as a number."""
    factor, _, name = dimension.rpartition("*")
    return int(factor or 1) * SIZES[name]


def feeds(model: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
    """Random inputs; the cache is read up to 11 positions, of which the last 9 are new."""
    rng = np.random.default_rng(3)
    fixed = {"position": 2, "length": 11}
    inputs: dict[str, np.ndarray] = {}
    for node in model.get_inputs():
        shape = [size if isinstance(size, int) else number(size) for size in node.shape]
        if node.type == "tensor(int64)":
            inputs[node.name] = np.full(shape, fixed.get(node.name, 1), np.int64)
        else:
            kind = np.float16 if node.type == "tensor(float16)" else np.float32
            inputs[node.name] = (0.3 * rng.standard_normal(shape)).astype(kind)
    return inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the bundled weights: ONNX Runtime follows no link to them."""
    folder = tmp_path_factory.mktemp("fused")
    shutil.copy(bundled_folder() / "weights.safetensors", folder)
    return folder


@pytest.mark.parametrize("name", FUSED)
def test_the_bundled_graphs(name: str, folder: Path) -> None:
    """Fused counts, and what the fused graph computes in ONNX Runtime, which inlines the bodies."""
    source = bundled_folder() / f"{name}.onnx"
    model = onnx.load(source, load_external_data=False)
    assert fuse(model, FINDERS) == FUSED[name]
    kinds = Counter(node.op_type for node in model.graph.node)
    assert {kind: kinds[kind] for kind in GRAPH_OPS if kinds[kind]} == FUSED[name]
    if not FUSED[name]:
        return
    onnx.save(model, folder / f"{name}.onnx")
    before, after = session(str(source)), session(str(folder / f"{name}.onnx"))
    inputs = feeds(before)
    for node, want, got in zip(before.get_outputs(), before.run(None, inputs), after.run(None, inputs), strict=True):
        assert np.linalg.norm(got.astype(np.float64) - want) <= 1e-3 * np.linalg.norm(want.astype(np.float64)), node.name


def test_nothing_is_fused_unless_it_is_asked_for() -> None:
    path = bundled_folder() / "transformer.onnx"
    model, untouched = (onnx.load(path, load_external_data=False) for _ in range(2))
    assert fuse(model, ()) == {} and model == untouched
    assert fuse(model, ["SwiGlu"]) == {"SwiGlu": 6}
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["RMSNormalization"] == 13 and kinds["Sigmoid"] == 0
    node = next(node for node in model.graph.node if node.op_type == "SwiGlu")
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert attributes == {"plugin_namespace": b"hart", "plugin_version": b"1"} and node.domain == "hart"


ALMOST = {  # what looks like an operator and is none
    "norm of a sum of two shapes": "agraph (float[3,8] x, float[8] r, float[8] w) => (float[3,8] y)"
    " { s = Add (x, r) y = RMSNormalization <axis = -1> (s, w) }",
    "norm over another axis": "agraph (float[3,8] x, float[3,8] r, float[3,8] w) => (float[3,8] y)"
    " { s = Add (x, r) y = RMSNormalization <axis = 0> (s, w) }",
    "norm without residual": "agraph (float[3,8] x, float[8] w) => (float[3,8] y) { y = RMSNormalization <axis = -1> (x, w) }",
    "sigmoid of something else": "agraph (float[3,8] g, float[3,8] h, float[3,8] u) => (float[3,8] y)"
    " { s = Sigmoid (h) a = Mul (g, s) y = Mul (a, u) }",
    "silu times a scalar": "agraph (float[3,8] g, float[1] u) => (float[3,8] y) { s = Sigmoid (g) a = Mul (g, s) y = Mul (a, u) }",
    "silu that is an output too": "agraph (float[3,8] g, float[3,8] u) => (float[3,8] y, float[3,8] a)"
    " { s = Sigmoid (g) a = Mul (g, s) y = Mul (a, u) }",
    "modulation without one": "agraph (float[3,8] x, float[3,24] m, float[8] w, float[8] b) => (float[3,8] y)"
    " { shift, scale, gate = Split <axis = -1, num_outputs = 3> (m) n = LayerNormalization (x, w, b)"
    " a = Mul (n, scale) y = Add (a, shift) }",
    "shift and scale exchanged": "agraph (float[3,8] x, float[3,24] m, float[8] w, float[8] b) => (float[3,8] y)"
    " <float[1] one = {1}>"
    " { p, q, r = Split <axis = -1, num_outputs = 3> (m) n = LayerNormalization (x, w, b) f = Add (p, one) a = Mul (n, f) y = Add (a, q) }",
}


@pytest.mark.parametrize("text", ALMOST.values(), ids=ALMOST)
def test_what_only_looks_like_an_operator_stays(text: str) -> None:
    model = small(text)
    untouched = ModelProto.FromString(model.SerializeToString())
    assert fuse(model, FINDERS) == {}
    assert model == untouched


def test_a_sum_that_others_read_stays_an_output() -> None:
    model = small(
        """agraph (float[3,8] x, float[3,8] r, float[8] w) => (float[3,8] z)
        { s = Add (x, r) y = RMSNormalization <axis = -1, epsilon = 1e-3> (s, w) z = Add (s, y) }"""
    )
    before = session(model)
    inputs = {"x": np.ones((3, 8), np.float32), "r": np.eye(3, 8, dtype=np.float32), "w": np.arange(8, dtype=np.float32)}
    want = before.run(None, inputs)
    assert fuse(model, ["AddRmsNorm"]) == {"AddRmsNorm": 1}
    assert [node.op_type for node in model.graph.node] == ["AddRmsNorm", "Add"]
    assert_close(session(model).run(None, inputs)[0], want[0], "float32")
