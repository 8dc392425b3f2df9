"""TensorRT's log: unexplained warnings stop the build."""

from __future__ import annotations

import pytest

from hart_edge.export.build.messages import Messages
from hart_edge.runtime.errors import EngineError


def test_explained_warnings_and_chatter_pass() -> None:
    nodes: list[str] = []
    messages = Messages(nodes.append)
    messages.take("WARNING", "ModelImporter.cpp:1071: Make sure input length has Int64 binding.")
    messages.take("INFO", "anything")
    messages.take("VERBOSE", "Parsing node: node_matmul [MatMul]")
    messages.take("VERBOSE", "Static check for parsing node: node_add [Add]")
    messages.check("reading x")
    assert nodes == ["node_matmul [MatMul]"]


@pytest.mark.parametrize("severity", ["WARNING", "ERROR", "INTERNAL_ERROR"])
def test_everything_else_stops_the_build(severity: str) -> None:
    messages = Messages(lambda node: None)
    messages.take(severity, "Unused Input: nonpad_kv_seqlen")
    with pytest.raises(EngineError, match=r"complained while reading x\.onnx: Unused Input: nonpad_kv_seqlen"):
        messages.check("reading x.onnx")
