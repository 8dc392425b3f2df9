"""One engine at a time, with the real package, in this process: small graphs that TensorRT would take wrongly or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import tensorrt_rtx
from onnx import TensorProto, helper, numpy_helper, parser

from hart_edge.export.build.builder import Builder
from hart_edge.export.build.messages import Messages, logger
from hart_edge.runtime.errors import EngineError

HEADER = '<ir_version: 10, opset_import: ["" : 24]>\n'
RANGES = {"B": (1, 1, 2), "L": (1, 4, 8)}
Attempt = Callable[[str], dict[str, object]]


@pytest.fixture(scope="module")
def messages() -> Messages:
    return Messages(lambda node: None)


@pytest.fixture(scope="module")
def log(messages: Messages) -> object:
    """The one logger of this process."""
    return logger(tensorrt_rtx, messages)


@pytest.fixture
def attempt(messages: Messages, log: object, tmp_path: Path) -> Attempt:
    messages.faults.clear()
    builder = Builder(tensorrt_rtx, log, messages, ("sm86",), RANGES, lambda what: None)

    def build(text: str) -> dict[str, object]:
        onnx.save(parser.parse_model(HEADER + text), tmp_path / "x.onnx")
        facts, engine = builder.build("x", tmp_path / "x.onnx")
        return facts | {"content": bytes(memoryview(engine))}

    return build


def test_a_good_graph(attempt: Attempt, tmp_path: Path) -> None:
    facts = attempt("agraph (float16[B,8] x) => (float16[B,8] y) { y = Mul (x, x) }")
    assert facts["inputs"] == [{"name": "x", "dtype": "float16", "shape": ("B", 8), "min": (1, 8), "opt": (1, 8), "max": (2, 8)}]
    assert facts["outputs"] == [{"name": "y", "dtype": "float16", "shape": ("B", 8)}]
    assert facts["layers"] == {"elementwise": 1}
    assert facts["content"][:4] == b"vtrt"


def test_lengths_that_the_parser_drops_stop_the_build(attempt: Attempt) -> None:
    with pytest.raises(EngineError, match="Unused Input"):
        attempt(
            """agraph (float16[B,4,L,32] q, float16[B,4,16,32] k, float16[B,4,16,32] v, int64[B] n) => (float16[B,4,L,32] y)
            { y = Attention (q, k, v, , , , n) }"""
        )


def test_an_operator_that_the_parser_refuses_is_named(attempt: Attempt) -> None:
    with pytest.raises(EngineError, match=r"x\.onnx: node .*UINT8"):
        attempt("agraph (float16[B,8] x) => (float16[B,8] y) { u = Cast <to = 2> (x) y = Cast <to = 10> (u) }")


def test_a_float32_product_is_refused_on_turing(messages: Messages, log: object, tmp_path: Path) -> None:
    """Why `sum_float32_products` is there; when this fails, the pass can go."""
    messages.faults.clear()
    text = "agraph (float[B,8] x, float[8,8] w) => (float[B,8] y) { y = Gemm (x, w) }"
    onnx.save(parser.parse_model(HEADER + text), tmp_path / "x.onnx")
    builder = Builder(tensorrt_rtx, log, messages, ("sm75",), RANGES, lambda what: None)
    with pytest.raises(EngineError, match="FP32 GEMM is not supported"):
        builder.build("x", tmp_path / "x.onnx")


def quantised(kind: str, activations: bool) -> onnx.ModelProto:
    """A product with explicit quantisation of its weight, and of its input."""
    size, code = 32, {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}[kind]
    weight = helper.make_tensor("W", code, (size, size), bytes(size * size), raw=True)
    scale = np.full(size if kind == "int8" else (), 0.01, np.float16)
    constants = [weight, numpy_helper.from_array(scale, "W.scale"), numpy_helper.from_array(np.float16(0.02), "W.input_scale")]
    nodes = [helper.make_node("DequantizeLinear", ["W", "W.scale"], ["w"], **({"axis": 1} if kind == "int8" else {}))]
    if activations:
        nodes.append(helper.make_node("QuantizeLinear", ["x", "W.input_scale"], ["q"], output_dtype=code))
        nodes.append(helper.make_node("DequantizeLinear", ["q", "W.input_scale"], ["d"]))
    nodes.append(helper.make_node("MatMul", ["d" if activations else "x", "w"], ["y"]))
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["B", size])] for name in "xy"]
    graph = helper.make_graph(nodes, "g", *ends, constants[: 3 if activations else 2])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)


@pytest.mark.parametrize(
    ("kind", "activations", "targets"),
    [("int8", False, ("sm75", "sm80", "sm120")), ("int8", True, ("sm75", "sm80", "sm120")), ("fp8", True, ("sm89", "sm120"))],
)
def test_explicit_quantisation_is_taken(
    kind: str, activations: bool, targets: tuple[str, ...], messages: Messages, log: object, tmp_path: Path
) -> None:
    messages.faults.clear()
    onnx.save(quantised(kind, activations), tmp_path / "x.onnx")
    facts, _ = Builder(tensorrt_rtx, log, messages, targets, RANGES, lambda what: None).build("x", tmp_path / "x.onnx")
    assert facts["layers"]["dequantize"] == 1 + activations and facts["layers"].get("quantize", 0) == activations


def test_fp8_is_refused_before_ada(messages: Messages, log: object, tmp_path: Path) -> None:
    """By TensorRT too, not by `check_targets` alone."""
    messages.faults.clear()
    onnx.save(quantised("fp8", True), tmp_path / "x.onnx")
    with pytest.raises(EngineError):
        Builder(tensorrt_rtx, log, messages, ("sm86", "sm89"), RANGES, lambda what: None).build("x", tmp_path / "x.onnx")
