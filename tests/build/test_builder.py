"""One engine at a time, with the real package, in this process: small graphs that TensorRT would take wrongly or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import tensorrt_rtx
from onnx import parser

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
