"""Plugins against the real package: its registry and networks in this process, its parser in build processes, faults included."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_rtx as trt
from onnx import TensorProto, helper

from hart_edge.export.build import BACKENDS, process
from hart_edge.export.build import plugins as build_plugins
from hart_edge.export.build.library import resolvable
from hart_edge.export.build.plugins import check_plugins
from hart_edge.export.build.shapes import dimension_ranges
from hart_edge.export.build.worker import BuildJob, EngineJob
from hart_edge.plugins.adapter import Faults
from hart_edge.plugins.graph_ops import GRAPH_OPS
from hart_edge.plugins.plugin import deregister_plugins, register_plugins
from hart_edge.runtime import Bundle
from hart_edge.runtime.bundle import bundled_folder
from hart_edge.runtime.errors import EngineError, InputError
from hart_edge.runtime.trt.packages import TensorRtPackage

Shape = tuple[int | str, ...]
INPUTS: dict[str, tuple[tuple[Shape, ...], dict[str, float | int]]] = {
    "AddRmsNorm": ((("rows", 64), ("rows", 64), (64,)), {"epsilon": 1e-6}),
    "SplitRotary": ((("rows", 96), ("R", 1, "L", 8), ("R", 1, "L", 8)), {"heads": 4}),
    "SwiGlu": ((("rows", 64), ("rows", 64)), {}),
    "LayerNormModulate": ((("rows", 64), ("rows", 192), (64,), (64,)), {"epsilon": 1e-6}),
    "GroupNormSilu": ((("B", 64, 8, 8), (64,), (64,)), {"epsilon": 1e-6, "height": 8, "width": 8}),
}
"""Shapes of the inputs, and attributes."""

OUTPUTS: dict[str, Shape] = {"SplitRotary": ("R", 4, "L", 8)}
RANGES = {"rows": (4, 6, 6), "R": (2, 2, 2), "L": (2, 3, 3), "B": (1, 2, 4)}


@pytest.fixture
def faults() -> Iterator[Faults]:
    """All operators registered for one test."""
    faults = Faults()
    creators = register_plugins(trt, GRAPH_OPS.values(), lambda launch, stream: None, faults)
    yield faults
    deregister_plugins(trt, creators)


def make(name: str) -> Any:
    """A plugin from the creator that the real registry gives."""
    fields = []
    for field, value in INPUTS[name][1].items():
        kind, data = (trt.PluginFieldType.FLOAT32, np.float32) if isinstance(value, float) else (trt.PluginFieldType.INT32, np.int32)
        fields.append(trt.PluginField(field, np.array([value], data), kind))
    creator = trt.get_plugin_registry().get_creator(name, "1", "hart")
    return creator.create_plugin("node", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)


def single_nodes(path: Path, kind: int) -> None:
    """An ONNX file with one node of every operator."""
    nodes, inputs, outputs = [], [], []
    for name, (shapes, attributes) in INPUTS.items():
        op = GRAPH_OPS[name]
        names, results = [f"{name}_in{k}" for k in range(op.inputs)], [f"{name}_out{k}" for k in range(op.outputs)]
        nodes.append(
            helper.make_node(name, names, results, f"{name}_0", domain="hart", plugin_namespace="hart", plugin_version="1", **attributes)
        )
        inputs += [helper.make_tensor_value_info(name, kind, shape) for name, shape in zip(names, shapes, strict=True)]
        outputs += [helper.make_tensor_value_info(result, kind, OUTPUTS.get(name, shapes[0])) for result in results]
    functions = [onnx.parser.parse_function(op.function.replace('["" : 18]', '["" : 24]')) for op in GRAPH_OPS.values()]
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("hart", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs), opset_imports=opsets, functions=functions, ir_version=11)
    onnx.save(model, path)


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "BFLOAT16"])
def test_every_plugin_builds_with_every_type(kind: str, tmp_path: Path, worker: Callable[[str], None]) -> None:
    """The parser asks the real registry; types, shapes and layouts that the plugins promise are taken, fields serialised."""
    worker("spying")
    single_nodes(tmp_path / "x.onnx", getattr(TensorProto, kind))
    targets = ("sm86", "sm120") if kind == "BFLOAT16" else ("sm75", "sm80", "sm86", "sm89", "sm120")  # Turing has no bfloat16
    job = BuildJob("tensorrt-rtx", targets, RANGES, (EngineJob("x", tmp_path / "x.onnx", tmp_path / "x.engine"),), tuple(GRAPH_OPS))
    facts = list(process.run(job))[-1][1]
    assert facts["plugins"] == {name: {"nodes": 1, "form": "python"} for name in sorted(GRAPH_OPS)}
    assert {"clone", "get_output_data_types", "get_output_shapes", "supports_format_combination"} <= set(facts["asked"])
    assert {"get_workspace_size", "get_fields_to_serialize"} <= set(facts["asked"]) and "enqueue" not in facts["asked"]
    engine = (tmp_path / "x.engine").read_bytes()
    assert all(name.encode() in engine for name in GRAPH_OPS)


def test_serialised_fields_are_read_back(faults: Faults) -> None:
    for name, (_, attributes) in INPUTS.items():
        plugin = make(name)
        fields = plugin.get_fields_to_serialize()
        again = trt.get_plugin_registry().get_creator(name, "1", "hart").create_plugin("node", fields, trt.TensorRTPhase.RUNTIME)
        assert again.adapter == plugin.adapter
        assert plugin.adapter.attributes == pytest.approx(attributes)


def test_names(faults: Faults) -> None:
    creators = {creator.name: creator for creator in trt.get_plugin_registry().all_creators if creator.plugin_namespace == "hart"}
    assert sorted(creators) == sorted(GRAPH_OPS) and all(creator.plugin_version == "1" for creator in creators.values())
    assert make("SwiGlu").plugin_namespace == "hart"


def build(tmp_path: Path, *plugins: str, engine: str = "residual_condition") -> dict[str, Any]:
    """In a build process."""
    bundle = Bundle(bundled_folder(), check_files=False)
    jobs = (EngineJob(engine, bundle.engine(engine), tmp_path / "x.engine"),)
    answers = list(process.run(BuildJob("tensorrt-rtx", ("sm86",), dimension_ranges(bundle.spec, 1), jobs, plugins)))
    return dict(answers[-1][1])


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a function of `workers.py` in the place of the real worker."""

    def replace(name: str) -> None:
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
        monkeypatch.setattr(process, "WORKER", f"workers:{name}")

    return replace


def test_nodes_become_plugins(tmp_path: Path) -> None:
    facts = build(tmp_path, "AddRmsNorm", "SwiGlu")
    assert facts["plugins"] == {"AddRmsNorm": {"nodes": 1, "form": "python"}}
    assert facts["layers"]["plugin_v3"] == 1
    assert b"AddRmsNorm" in (tmp_path / "x.engine").read_bytes()


def test_a_node_that_falls_back_to_its_body_stops_the_build(tmp_path: Path, worker: Callable[[str], None]) -> None:
    worker("unregistered")
    with pytest.raises(EngineError, match=r"nodes that were to be plugins are computed by their function bodies: \{'AddRmsNorm': 1\}"):
        build(tmp_path, "AddRmsNorm")
    assert not (tmp_path / "x.engine").exists()


@pytest.mark.parametrize(
    ("broken", "callback"),
    [
        ("raising_shapes", "get_output_shapes"),
        ("raising_formats", "supports_format_combination"),
        ("raising_scratch", "get_workspace_size"),
        ("raising_fields", "get_fields_to_serialize"),
    ],
)
def test_a_raising_callback_stops_the_build_with_its_reason(
    broken: str, callback: str, tmp_path: Path, worker: Callable[[str], None]
) -> None:
    worker(broken)
    with pytest.raises(EngineError, match=rf"a plugin failed while .*AddRmsNorm\.{callback}: ValueError: deliberate"):
        build(tmp_path, "AddRmsNorm")
    assert not (tmp_path / "x.engine").exists()


def test_a_plugin_that_cannot_be_copied_names_its_node(tmp_path: Path, worker: Callable[[str], None]) -> None:
    """TensorRT does not survive an exception there."""
    worker("raising_clone")
    with pytest.raises(EngineError, match=r"was ended by signal \d+ while parsing residual_condition, at node AddRmsNorm_0"):
        build(tmp_path, "AddRmsNorm")


def test_a_crash_of_the_parser_names_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX 1.7 ends the process when it cannot find its library by the name without a version."""
    folder = Path(sys.modules["tensorrt_rtx_libs"].__file__ or "").parent
    if (folder / "libtensorrt_rtx.so").exists() or sys.platform != "linux":
        pytest.skip("needs a wheel without the library name that its parser looks for, such as tensorrt-rtx 1.7 for Linux")
    monkeypatch.setattr(process, "resolvable", lambda library: resolvable(""))
    with pytest.raises(EngineError, match=r"was ended by signal \d+ while parsing residual_condition, at node AddRmsNorm_0"):
        build(tmp_path, "AddRmsNorm")


class Wheel:
    """A package of libraries with the given files."""

    def __init__(self, root: Path, *files: str) -> None:
        self.folder = root / "libnothing_libs".removeprefix("lib")
        self.folder.mkdir()
        for name in ("__init__.py", *files):
            (self.folder / name).write_text("")


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: nothing is done elsewhere")
def test_the_library_s_missing_name_is_made_resolvable_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = Wheel(tmp_path, "libnothing.so.1")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/before")
    with resolvable("libnothing.so") as environment:
        first, second = environment["LD_LIBRARY_PATH"].split(":")
        assert (Path(first) / "libnothing.so").resolve() == (wheel.folder / "libnothing.so.1").resolve()
        assert second == "/before"
    assert not Path(first).exists()
    assert sorted(path.name for path in wheel.folder.iterdir()) == ["__init__.py", "libnothing.so.1"]


def test_a_wheel_that_has_the_name_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Wheel(tmp_path, "libnothing.so.1", "libnothing.so")
    monkeypatch.syspath_prepend(tmp_path)
    for library in ("libnothing.so", "libabsent.so", ""):
        with resolvable(library) as environment:
            assert environment == {}


def test_the_choice_of_plugins() -> None:
    assert check_plugins("none") == () and check_plugins("all") == tuple(GRAPH_OPS)
    assert check_plugins("SwiGlu,AddRmsNorm") == ("AddRmsNorm", "SwiGlu")
    with pytest.raises(InputError, match="plugin '' is unknown; expected none, all or a list of AddRmsNorm"):
        check_plugins("")


def test_classic_takes_kernels_into_the_engine_where_one_launch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """All others are Python plugins; without any, neither the compiler nor a GPU is asked for."""
    registered: dict[str, list[str]] = {}
    monkeypatch.setattr(TensorRtPackage, "load_plugins", lambda self: f"{self.module}.plugin")
    monkeypatch.setattr(build_plugins, "PtxCompiler", lambda: "compiler")
    monkeypatch.setattr(build_plugins, "register_ahead", lambda *a: registered.update({f"{a[0]}, {a[2]}": [op.name for op in a[1]]}))
    monkeypatch.setattr(build_plugins, "register_plugins", lambda *a: registered.update(python=[op.name for op in a[1]]) or ["kept"])
    assert build_plugins.register("module", BACKENDS["tensorrt"], ()).forms == {} and registered == {}
    plugins = build_plugins.register("module", BACKENDS["tensorrt"], GRAPH_OPS)
    ahead = [name for name in GRAPH_OPS if name != "GroupNormSilu"]
    assert registered == {"tensorrt.plugin, compiler": ahead, "python": ["GroupNormSilu"]}
    assert plugins.forms == dict.fromkeys(ahead, "ahead") | {"GroupNormSilu": "python"} and plugins.keep == ("kept",)
    registered.clear()
    assert set(build_plugins.register("module", BACKENDS["tensorrt-rtx"], GRAPH_OPS).forms.values()) == {"python"}
    assert registered == {"python": [*GRAPH_OPS]}
