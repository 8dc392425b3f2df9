"""The operators of graphs: function bodies against the NumPy truths, and plugins driven as TensorRT drives them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from devices import Gpu, assert_output, represented
from graph_cases import GraphCase, cases, description, identity
from onnx import helper
from tolerances import assert_close
from trt_double import module

from hart_edge.plugins import KERNELS
from hart_edge.plugins.adapter import Adapter, Faults
from hart_edge.plugins.graph_op import GraphOp
from hart_edge.plugins.graph_ops import GRAPH_OPS
from hart_edge.plugins.kernel import FLOATS, Launch, Pointer
from hart_edge.plugins.plugin import deregister_plugins, register_plugins
from hart_edge.runtime.errors import EngineError
from hart_edge.runtime.trt.launcher import DeviceLauncher

OPSETS = {"GroupNormSilu": 18}
LAST = {"float32": "HWC", "float16": "HWC8", "bfloat16": "HWC8"}


def plugin_of(op: GraphOp, attributes: dict[str, float | int], launcher: Any, faults: Faults) -> Any:
    """A plugin from the creator that `register_plugins` makes, over a double of the module."""
    trt = module()
    register_plugins(trt, [op], launcher, faults)
    fields = [SimpleNamespace(name=name, data=np.array([value])) for name, value in attributes.items()]
    return trt.registry.creators[op.name, "hart"].create_plugin("node", fields, "BUILD")


@pytest.mark.parametrize("case", cases(), ids=identity)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_body_computes_the_truth(case: GraphCase, dtype: str) -> None:
    """In ONNX Runtime, which inlines it."""
    op, kind = GRAPH_OPS[case.op], helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    names = [f"in{k}" for k in range(op.inputs)], [f"out{k}" for k in range(op.outputs)]
    node = helper.make_node(case.op, *names, domain="hart", plugin_namespace="hart", plugin_version="1", **case.attributes)
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, shape in zip(names[0], case.shapes, strict=True)]
    outputs = [helper.make_tensor_value_info(name, kind, None) for name in names[1]]
    opsets = [helper.make_opsetid("", OPSETS.get(case.op, 24)), helper.make_opsetid("hart", 1)]
    graph = helper.make_graph([node], "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=opsets, functions=[onnx.parser.parse_function(op.function)], ir_version=11)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, dict(zip(names[0], case.inputs(dtype), strict=True)))
    for got, want in zip(found, case.outputs(dtype), strict=True):
        assert_close(got, want, "body float16" if dtype == "float16" else "kernel float32")


@pytest.mark.parametrize("case", cases(), ids=identity)
def test_shapes_follow_from_the_inputs(case: GraphCase) -> None:
    adapter = Adapter(GRAPH_OPS[case.op], case.attributes)
    assert list(adapter.output_shapes(case.shapes)) == [output.shape for output in case.outputs("float32")]


@pytest.mark.parametrize("op", GRAPH_OPS.values(), ids=lambda op: op.name)
def test_everything_that_is_launched_is_in_the_catalogue(op: GraphOp) -> None:
    assert set(op.kernels) <= set(KERNELS)
    for case in cases():
        if case.op == op.name:
            for dtype in FLOATS:
                assert {launch.kernel for launch in launches_of(case, dtype)} <= set(op.kernels)


def launches_of(case: GraphCase, dtype: str) -> list[Launch]:
    """What a plugin launches for the case, with made-up addresses."""
    seen: list[Launch] = []
    faults = Faults()
    plugin = plugin_of(GRAPH_OPS[case.op], case.attributes, lambda launch, stream: seen.append(launch), faults)
    inputs = [tensor(case, shape, dtype) for shape in case.shapes]
    outputs = [tensor(case, output.shape, dtype) for output in case.outputs("float32")]
    addresses = [0x1000 * (k + 1) for k in range(len(inputs) + len(outputs))]
    plugin.enqueue(inputs, outputs, addresses[: len(inputs)], addresses[len(inputs) :], 0x100000, 7)
    faults.check("launching")
    return seen


ADDRESSES = {  # inputs at 0x1000, 0x2000, …, outputs behind them, scratch memory at 0x100000; in the order of the kernels' parameters
    "AddRmsNorm": [[0x1000, 0x2000, 0x5000, 0x3000, 0, 0, 0x4000]],  # x, residual, sum, weight, no modulation, y
    "SplitRotary": [[0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000]],
    "SwiGlu": [[0x1000, 0x2000, 0x3000]],
    "LayerNormModulate": [[0x1000, 0x3000, 0x4000, 0x2000 + 1024 * 4, 0x2000, 0x5000]],  # x, weight, bias, scale, shift, y
    # 8 chunks of 48 pixels, 2 pictures: the sums take 4 KiB, gain and offset lie behind them
    "GroupNormSilu": [[0x1000, 0x100000], [0x1000, 0x100000, 0x2000, 0x3000, 0x101000], [0x1000, 0x101000, 0x4000]],
}


@pytest.mark.parametrize("case", cases()[::2], ids=identity)
def test_every_address_reaches_its_parameter(case: GraphCase) -> None:
    found = [[argument.value for argument in launch.arguments if isinstance(argument, Pointer)] for launch in launches_of(case, "float32")]
    assert found == ADDRESSES[case.op]


def tensor(case: GraphCase, shape: tuple[int, ...], dtype: str) -> Any:
    last = GRAPH_OPS[case.op].channels_last and len(shape) == 4
    return description(shape, dtype, LAST[dtype] if last else "LINEAR")


@pytest.mark.parametrize("dtype", FLOATS)
def test_layouts_and_types(dtype: str) -> None:
    other = "float16" if dtype == "float32" else "float32"
    for case in cases():
        adapter = Adapter(GRAPH_OPS[case.op], case.attributes)
        shapes = [*case.shapes, *(output.shape for output in case.outputs("float32"))]
        good = [tensor(case, shape, dtype) for shape in shapes]
        for position, shape in enumerate(shapes):
            assert adapter.supports(position, good)
            wrong = [description(shape, dtype, "CHW4")]
            wrong += [description(shape, other, good[position].format.name)] if position else []  # the first one may choose its type
            for tensor_ in wrong:
                assert not adapter.supports(position, [*good[:position], tensor_, *good[position + 1 :]])
    int8 = SimpleNamespace(dims=(2, 8), type=SimpleNamespace(name="INT8"), format=SimpleNamespace(name="LINEAR"))
    assert not Adapter(GRAPH_OPS["SwiGlu"], {}).supports(0, [int8, int8, int8])


def test_scratch_is_for_the_largest_shape() -> None:
    op = GRAPH_OPS["GroupNormSilu"]
    plugin = plugin_of(op, {"epsilon": 1e-6, "height": 16, "width": 16}, None, Faults())
    given = SimpleNamespace(desc=description((-1, 64, 16, 16), "float16", "HWC8"), max=(4, 64, 16, 16))
    assert plugin.get_workspace_size([given, given, given], [given]) == op.scratch((4, 16, 16, 64), "float16") > 0
    assert plugin_of(GRAPH_OPS["SwiGlu"], {}, None, Faults()).get_workspace_size([given], [given]) == 0


def test_attributes_survive_serialisation() -> None:
    """What a plugin serialises makes the same plugin again."""
    for name, attributes in (("AddRmsNorm", {"epsilon": float(np.float32(1e-6))}), ("SplitRotary", {"heads": 24}), ("SwiGlu", {})):
        plugin = plugin_of(GRAPH_OPS[name], attributes, None, Faults())
        again = Adapter.of(GRAPH_OPS[name], plugin.get_fields_to_serialize())
        assert again == plugin.adapter == plugin.clone().adapter
        assert again.attributes == attributes


@pytest.mark.parametrize("fields", [{}, {"epsilon": np.array([1.0, 2.0])}])
def test_attributes_that_are_missing(fields: dict[str, Any]) -> None:
    given = [SimpleNamespace(name=name, data=data) for name, data in fields.items()]
    with pytest.raises(EngineError, match=r"plugin AddRmsNorm was made without the attributes \['epsilon'\]"):
        Adapter.of(GRAPH_OPS["AddRmsNorm"], given)


def test_a_fault_is_noted_and_answered_harmlessly() -> None:
    """A creator without its attribute, a plugin whose adapter is broken: no exception comes out but that of `enqueue`."""
    faults, trt = Faults(), module()
    (creator,) = register_plugins(trt, [GRAPH_OPS["SplitRotary"]], lambda launch, stream: None, faults)
    assert creator.create_plugin("node", [], "BUILD") is None
    with pytest.raises(EngineError, match=r"failed while reading x: SplitRotary\.create_plugin: EngineError: .*heads"):
        faults.check("reading x")
    plugin = creator.create_plugin("node", [SimpleNamespace(name="heads", data=np.array([2]))], "BUILD")
    plugin.adapter = Adapter(GRAPH_OPS["SplitRotary"], {})  # without heads: its shapes raise KeyError
    inputs = [(6, 24), (2, 1, 3, 4), (2, 1, 3, 4)]
    assert plugin.get_output_shapes(inputs, [], None) == [(6, 24)] * 3
    assert plugin.supports_format_combination(9, [], 3) is False
    with pytest.raises(EngineError, match=r"get_output_shapes: KeyError: 'heads' \| .*supports_format_combination: IndexError"):
        faults.check("building x")
    with pytest.raises(ValueError, match="argument"):
        plugin.enqueue([], [description((1,), "float32")], [], [], 0, 0)
    with pytest.raises(EngineError, match=r"SplitRotary\.enqueue: ValueError"):
        faults.check("running x")
    faults.check("running x")  # told once
    faults.add("SplitRotary.enqueue", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        faults.check("running x")


def test_an_operator_is_registered_once() -> None:
    trt = module()
    creators = register_plugins(trt, GRAPH_OPS.values(), None, Faults())
    assert sorted(name for name, _ in trt.registry.creators) == sorted(GRAPH_OPS)
    with pytest.raises(RuntimeError, match="did not register the plugin hart::AddRmsNorm"):
        register_plugins(trt, GRAPH_OPS.values(), None, Faults())
    deregister_plugins(trt, creators)
    assert not trt.registry.creators


@pytest.mark.gpu
@pytest.mark.parametrize("case", cases(), ids=identity)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("captured", [False, True])
def test_enqueue(gpu: Gpu, case: GraphCase, dtype: str, captured: bool) -> None:
    """The plugin as TensorRT calls it: descriptions, device addresses, scratch memory and a stream that it names by address."""
    if gpu.device.driver.name != "cuda-python":
        pytest.skip("needs the host cuda-python: PyCUDA launches on its own streams only")
    op, faults = GRAPH_OPS[case.op], Faults()
    plugin = plugin_of(op, case.attributes, DeviceLauncher(gpu.device, gpu.library), faults)
    inputs = [gpu.put(stored(case, x), dtype) for x in case.inputs(dtype)]
    wanted = case.outputs(dtype)
    outputs = [gpu.empty(stored(case, y).shape, dtype) for y in wanted]
    given, made = [tensor(case, s, dtype) for s in case.shapes], [tensor(case, y.shape, dtype) for y in wanted]
    size = plugin.get_workspace_size([SimpleNamespace(desc=x, max=x.dims) for x in given], made)
    scratch = gpu.empty((max(1, size),), "uint8")

    def enqueue() -> None:
        plugin.enqueue(given, made, [x.address for x in inputs], [y.address for y in outputs], scratch.address, gpu.stream.address)

    if captured:
        gpu.library.load()
        gpu.stream.capture(enqueue).launch(gpu.stream)
    else:
        enqueue()
    gpu.stream.synchronize()
    faults.check("running the test")
    for buffer, want in zip(outputs, wanted, strict=True):
        assert_output(gpu.get(buffer), represented(stored(case, np.asarray(want, np.float32)), dtype), dtype)


def stored(case: GraphCase, x: Any) -> Any:
    """As the tensor lies in memory."""
    last = GRAPH_OPS[case.op].channels_last and x.ndim == 4
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if last else x
