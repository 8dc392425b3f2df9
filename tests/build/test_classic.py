"""Classic TensorRT takes the same path: a double of its module that offers only what both packages have."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import tensorrt_rtx
from onnx import parser

from hart_edge.export.build.builder import Builder
from hart_edge.export.build.messages import Messages
from hart_edge.export.build.plugins import Plugins


class Recorder:
    """Answers as the double's methods do and keeps the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def called(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, arguments))


def tensor(name: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, dtype=SimpleNamespace(name="HALF"), shape=(-1, 8))


def double(record: Recorder) -> SimpleNamespace:
    """The module with a network of one layer."""
    layer = SimpleNamespace(type=tensorrt_rtx.LayerType.ELEMENTWISE)
    network = SimpleNamespace(num_layers=1, num_inputs=1, num_outputs=1)
    network.get_layer, network.get_input, network.get_output = lambda k: layer, lambda k: tensor("x"), lambda k: tensor("y")
    profile = SimpleNamespace(set_shape=lambda *arguments: record.called("set_shape", *arguments))
    config = SimpleNamespace(add_optimization_profile=lambda given: record.called("add_optimization_profile", given is profile))
    builder = SimpleNamespace(
        create_network=lambda flags: record.called("create_network", flags) or network,
        create_builder_config=lambda: config,
        create_optimization_profile=lambda: profile,
        build_serialized_network=lambda *arguments: record.called("build", arguments == (network, config)) or b"engine",
    )
    parsing = SimpleNamespace(num_errors=0, parse=lambda data, path: record.called("parse", path) or True)
    return SimpleNamespace(
        Builder=lambda log: builder,
        OnnxParser=lambda given, log: parsing,
        LayerType=tensorrt_rtx.LayerType,
        NetworkDefinitionCreationFlag=tensorrt_rtx.NetworkDefinitionCreationFlag,
        int32="INT32",
    )


def test_it_builds_for_the_card_of_the_machine(tmp_path: Path) -> None:
    record = Recorder()
    text = '<ir_version: 10, opset_import: ["" : 24]> agraph (float16[B,8] x) => (float16[B,8] y) { y = Mul (x, x) }'
    onnx.save(parser.parse_model(text), tmp_path / "x.onnx")
    steps: list[str] = []
    builder = Builder(double(record), None, Messages(lambda node: None), ("native",), {"B": (1, 1, 4)}, steps.append)
    facts, engine = builder.build("x", tmp_path / "x.onnx")
    assert steps == ["parsing x", "building x"]
    assert record.calls == [
        ("create_network", (1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED),)),
        ("parse", (str(tmp_path / "x.onnx"),)),
        ("set_shape", ("x", (1, 8), (1, 8), (4, 8))),
        ("add_optimization_profile", (True,)),
        ("build", (True,)),
    ]
    assert engine == b"engine" and facts["layers"] == {"elementwise": 1}


def test_plugins_in_the_engine_are_asked_for_with_a_flag(tmp_path: Path) -> None:
    record = Recorder()
    module = double(record)
    module.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1, PREFER_AOT_PYTHON_PLUGINS=3)
    text = '<ir_version: 10, opset_import: ["" : 24]> agraph (float16[B,8] x) => (float16[B,8] y) { y = Mul (x, x) }'
    onnx.save(parser.parse_model(text), tmp_path / "x.onnx")
    for forms, flags in (({"SwiGlu": "python"}, 1 << 1), ({"SwiGlu": "ahead", "GroupNormSilu": "python"}, 1 << 1 | 1 << 3)):
        plugins = Plugins(forms)
        builder = Builder(module, None, Messages(lambda node: None), ("native",), {"B": (1, 1, 4)}, lambda what: None, plugins)
        builder.build("x", tmp_path / "x.onnx")
        assert [arguments for name, arguments in record.calls if name == "create_network"][-1] == (flags,)
