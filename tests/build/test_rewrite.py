"""The passes: what a rewritten graph computes is what the original computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto, helper, parser

from hart_edge.export.build.rewrite import attend_with_lengths, cast_to_uint8_last, rewrite, sum_float32_products
from hart_edge.plugins.cached_attention import CACHED_ATTENTION, cached_attention
from hart_edge.runtime.bundle import bundled_folder

# What TRT_Attention is documented to do, in standard operators: no scaling, the first kv_len keys of every row.
TRT_ATTENTION = """
<domain: "trt", opset_import: ["" : 24]>
TRT_Attention (q, k, v, mask, q_len, kv_len) => (y)
{
    n = Cast <to = 7> (kv_len)
    y = Attention <scale: float = 1.0> (q, k, v, , , , n)
}
"""

HEADER = '<ir_version: 10, opset_import: ["" : 24, "hart" : 1]>\n'


def run(model: ModelProto, inputs: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def kinds(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_attention_with_lengths_computes_cached_attention() -> None:
    graph = """agraph (float[R,3,L,8] q, float[R,3,L,8] k, float[R,3,L,8] v, float[R,3,19,8] kc, float[R,3,19,8] vc,
        int64[R] position, int64[R] length) => (float[R,3,L,8] y2, float[R,3,19,8] kn2, float[R,3,19,8] vn2)
    {
        y1, kn, vn = hart.CachedAttention <scale = 0.3> (q, k, v, kc, vc, position, length)
        y2, kn2, vn2 = hart.CachedAttention <scale = 0.7> (y1, k, v, kn, vn, position, length)
    }"""
    model = parser.parse_model(HEADER + graph)
    model.functions.append(parser.parse_function(CACHED_ATTENTION))
    assert attend_with_lengths(model) == 2
    assert kinds(model).count("TRT_Attention") == 2 and kinds(model).count("TensorScatter") == 4
    assert not model.functions and "CachedAttention" not in kinds(model)
    model.functions.append(parser.parse_function(TRT_ATTENTION))
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 3, 5, 8), np.float32) for _ in range(3))
    kc, vc = (rng.standard_normal((2, 3, 19, 8), np.float32) for _ in range(2))  # what lies after the valid part must not matter
    position, length = np.full(2, 6), np.full(2, 11)
    y, k_next, v_next = run(model, {"q": q, "k": k, "v": v, "kc": kc, "vc": vc, "position": position, "length": length})
    y1, kn, vn = cached_attention(q, k, v, kc, vc, position, length, 0.3)
    want, _, _ = cached_attention(y1, k, v, kn, vn, position, length, 0.7)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(k_next, kn)
    np.testing.assert_array_equal(v_next, vn)


def test_uint8_moves_to_the_end() -> None:
    text = "agraph (float[2,3,5] x) => (uint8[2,5,3] y) { u = Cast <to = 2> (x) y = Transpose <perm = [0, 2, 1]> (u) }"
    model = parser.parse_model(HEADER + text)
    x = np.random.default_rng(1).uniform(0, 255, (2, 3, 5)).astype(np.float32)
    before = run(model, {"x": x})
    assert cast_to_uint8_last(model) == 1
    assert kinds(model) == ["Transpose", "Cast"]
    np.testing.assert_array_equal(run(model, {"x": x})[0], before[0])
    assert cast_to_uint8_last(model) == 0


def test_float32_products_become_sums() -> None:
    text = """agraph (float[B,4,p,7] h, float[11,p] up, float16[2,3] a, float16[3,2] b) => (float[B,4,11,7] y, float16[2,2] z)
    { y = MatMul (up, h) z = MatMul (a, b) }"""
    model = parser.parse_model(HEADER + text)
    rng = np.random.default_rng(2)
    inputs = {
        "h": rng.standard_normal((2, 4, 5, 7), np.float32),
        "up": rng.standard_normal((11, 5), np.float32),
        "a": np.ones((2, 3), np.float16),
        "b": np.ones((3, 2), np.float16),
    }
    before = run(model, inputs)
    assert sum_float32_products(model) == 1
    assert kinds(model).count("MatMul") == 1  # the float16 product stays
    after = run(model, inputs)
    np.testing.assert_allclose(after[0], before[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(after[1], before[1])


def test_products_are_rewritten_for_turing_only() -> None:
    path = bundled_folder() / "transition.onnx"
    turing, newer = (onnx.load(path, load_external_data=False) for _ in range(2))
    assert rewrite(turing, ("sm75", "sm86")) == {"sum_float32_products": 5}
    assert "MatMul" not in kinds(turing)
    assert rewrite(newer, ("sm86",)) == {}


def test_the_bundled_decoder_ends_with_its_cast() -> None:
    model = onnx.load(bundled_folder() / "decoder.onnx", load_external_data=False)
    assert rewrite(model, ("sm86",)) == {"cast_to_uint8_last": 1}
    last = next(node for node in model.graph.node if "image" in node.output)
    assert last.op_type == "Cast" and helper.get_node_attr_value(last, "to") == TensorProto.UINT8
