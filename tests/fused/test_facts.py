"""Constants read from a bundle's ONNX files without the onnx package, and the tensors that the engines say they have."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from hart_edge.runtime.bundle import Bundle, bundled_folder
from hart_edge.runtime.errors import BundleError
from hart_edge.runtime.fused.facts import GraphFacts
from hart_edge.runtime.fused.infos import engine_infos
from hart_edge.runtime.fused.onnx_file import read_graph
from hart_edge.runtime.ort import OrtEngine


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle(bundled_folder(), check_files=False)


def test_facts_of_the_bundled_model(bundle: Bundle) -> None:
    facts = GraphFacts.of(bundle)
    assert facts.norm_eps == facts.text_eps == pytest.approx(1e-6)
    assert facts.attention_scale == 0.25 / bundle.spec.head_dim**0.5
    assert facts.phi_ratio == 0.5


@pytest.mark.parametrize("name", ["context", "transformer", "transition", "text_encoder"])
def test_graphs_are_read_as_onnx_reads_them(bundle: Bundle, name: str) -> None:
    graph = read_graph(bundle.engine(name))
    want = onnx.load(str(bundle.engine(name)), load_external_data=False).graph
    assert [(node.type, list(node.inputs), list(node.outputs)) for node in graph.nodes] == [
        (node.op_type, list(node.input), list(node.output)) for node in want.node
    ]
    floats = [{a.name: a.f for a in node.attribute if a.type == onnx.AttributeProto.FLOAT} for node in want.node]
    assert [{k: v for k, v in node.floats.items() if k in names} for node, names in zip(graph.nodes, floats, strict=True)] == floats


@pytest.mark.parametrize("content", [b"not a graph", b"", b"\x3a\xff\xff\xff\xff\x0f", b"\x3b"])
def test_a_damaged_graph_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "engine.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"engine\.onnx cannot be read as an ONNX graph"):
        read_graph(path)


def test_engines_have_the_tensors_of_the_exported_graphs(bundle: Bundle) -> None:
    infos = engine_infos(bundle.spec, "float16", has_text=True)
    assert set(infos) == set(bundle.manifest.engines)
    for name, (inputs, outputs) in infos.items():
        with OrtEngine(bundle.engine(name), name) as engine:
            assert (inputs, outputs) == (engine.inputs, engine.outputs)
