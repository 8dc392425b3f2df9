"""Kernels that an engine carries: what is launched is what a plugin launches, it compiles, and it computes the truth."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from devices import Gpu, assert_output, represented
from graph_cases import GraphCase, cases, identity

from hart_edge.plugins import sources
from hart_edge.plugins.adapter import Adapter, Faults
from hart_edge.plugins.ahead import ENTRY, entry_source, product
from hart_edge.plugins.ahead_plugin import entry_of, register_ahead
from hart_edge.plugins.graph_ops import GRAPH_OPS
from hart_edge.plugins.kernel import Pointer
from hart_edge.runtime.errors import EngineError, KernelError
from hart_edge.runtime.kernels import pack
from hart_edge.runtime.nvrtc import Compiler, unit
from hart_edge.runtime.trt.launcher import PtxCompiler

AHEAD = [case for case in cases() if GRAPH_OPS[case.op].ahead is not None]


class Size:
    """A dimension as `tensorrt.plugin` gives it: known, or an expression that multiplies."""

    def __init__(self, text: str, value: int | None = None) -> None:
        self.text, self.is_constant = text, value is not None
        self._value = value

    def constant_value(self) -> int:
        assert self._value is not None
        return self._value

    def __mul__(self, other: Size | int) -> Size:
        return Size(f"{self.text}*{other.text if isinstance(other, Size) else other}")


class Described:
    """A tensor description."""

    def __init__(self, shape_expr: Any, dtype: Any) -> None:
        self.shape_expr, self.dtype = shape_expr, dtype


def plugin_module() -> Any:
    """As much of `tensorrt.plugin` as is used (tests/trt/classic_signatures.json); keeps the decorated functions."""
    made: dict[str, dict[str, Any]] = {"register": {}, "aot_impl": {}}

    def decorator(kind: str) -> Any:
        return lambda name: lambda function: made[kind].setdefault(name, function)

    return SimpleNamespace(
        register=decorator("register"),
        aot_impl=decorator("aot_impl"),
        TensorDesc=Described,
        from_shape_expr=Described,
        KernelLaunchParams=type("KernelLaunchParams", (SimpleNamespace,), {}),
        SymExprs=list,
        SymIntExprs=SimpleNamespace(from_tuple=list),
        SymInt32=lambda value: ("SymInt32", value),
        made=made,
    )


def test_products_of_numbers_and_expressions() -> None:
    rows = Size("rows")
    assert product(()) == 1 and product((2, 3)) == 6 and product((rows,)) is rows
    assert product((rows, 2, Size("tokens"), 3)).text == "rows*tokens*6"


@pytest.mark.parametrize("case", AHEAD, ids=identity)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_launch_is_that_of_the_plugin(case: GraphCase, dtype: str) -> None:
    names = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}

    def described(shape: tuple[int, ...]) -> Any:
        return SimpleNamespace(dims=shape, type=SimpleNamespace(name=names[dtype]))

    adapter, outputs = Adapter(GRAPH_OPS[case.op], case.attributes), [output.shape for output in case.outputs("float32")]
    addresses = [4096 * (k + 1) for k in range(len(case.shapes) + len(outputs))]
    count = len(case.shapes)
    (launch,) = adapter.launches([*map(described, case.shapes)], [*map(described, outputs)], addresses[:count], addresses[count:], 0)
    entry = entry_of(GRAPH_OPS[case.op], case.shapes, dtype, case.attributes)
    assert (*entry.grid, 1) == launch.grid and (entry.threads, 1, 1) == launch.block and launch.shared == 0
    assert launch.kernel.expression in entry.call


def test_registration_says_inputs_attributes_and_outputs() -> None:
    trtp, ops = plugin_module(), [op for op in GRAPH_OPS.values() if op.ahead is not None]
    register_ahead(trtp, ops, lambda text: b"ptx", Faults())
    assert sorted(trtp.made["register"]) == sorted(trtp.made["aot_impl"]) == sorted(f"hart::{op.name}" for op in ops)
    for op in ops:
        signature = inspect.signature(trtp.made["register"][f"hart::{op.name}"])
        kinds = [parameter.annotation for parameter in signature.parameters.values()]
        assert kinds == [Described] * op.inputs + list(op.attributes.values())
        assert get_args(signature.return_annotation) == (Described,) * op.outputs
        parameters = list(inspect.signature(trtp.made["aot_impl"][f"hart::{op.name}"]).parameters)
        assert parameters == [f"in{k}" for k in range(op.inputs)] + [*op.attributes, "outputs", "tactic"]


def test_dimensions_that_vary_become_expressions() -> None:
    trtp, texts = plugin_module(), []
    register_ahead(trtp, [GRAPH_OPS["SplitRotary"]], lambda text: texts.append(text) or b"ptx", Faults())
    half = SimpleNamespace(name="HALF")
    table = Described((Size("R"), Size("1", 1), Size("L"), Size("64", 64)), half)
    inputs = [Described((Size("R*L"), Size("4608", 4608)), half), table, table]
    outputs = trtp.made["register"]["hart::SplitRotary"](*inputs, heads=24)
    assert [[getattr(size, "text", size) for size in output.shape_expr] for output in outputs] == [["R", 24, "L", "64"]] * 3
    name, ptx, launch, numbers = trtp.made["aot_impl"]["hart::SplitRotary"](*inputs, 24, outputs, 0)
    assert (name, ptx) == (ENTRY, b"ptx")
    assert (launch.grid_x.text, launch.grid_y, launch.block_x) == ("R*L", 1, 96)
    assert [(kind, number.text) for kind, number in numbers] == [("SymInt32", "L")]
    assert "hart::split_rotary<__half, 8>(in0, in1, in2, out0, out1, out2, n0, 24, 64)" in texts[0]


def test_a_fault_goes_on_to_tensorrt_and_is_noted() -> None:
    def fail(text: str) -> bytes:
        raise KernelError("does not compile.")

    trtp, faults = plugin_module(), Faults()
    register_ahead(trtp, [GRAPH_OPS["SwiGlu"]], fail, faults)
    gate = Described((Size("rows"), Size("64", 64)), SimpleNamespace(name="HALF"))
    with pytest.raises(KernelError):
        trtp.made["aot_impl"]["hart::SwiGlu"](gate, gate, [gate], 0)
    with pytest.raises(EngineError, match=r"failed while building x: SwiGlu\.aot_impl: KernelError: does not compile"):
        faults.check("building x")


def test_an_operator_of_several_launches_has_no_such_form() -> None:
    with pytest.raises(ValueError, match="GroupNormSilu has no kernel"):
        entry_of(GRAPH_OPS["GroupNormSilu"], [], "float16", {})


@pytest.fixture(scope="module")
def ptx() -> PtxCompiler:
    pytest.importorskip("cuda.pathfinder", reason="needs cuda-pathfinder and nvidia-cuda-nvrtc: pip install 'hart-edge[cuda]'")
    return PtxCompiler(80)


@pytest.mark.parametrize("case", AHEAD, ids=identity)
def test_it_compiles_to_ptx(case: GraphCase, ptx: PtxCompiler) -> None:
    """One entry whose parameters are the inputs, the numbers and the outputs."""
    op = GRAPH_OPS[case.op]
    entry = entry_of(op, case.shapes, "float16", case.attributes)
    text = ptx(entry_source(op.ahead, entry, "float16", op.inputs, op.outputs)).decode()
    parameters = [line.split()[1] for line in text.partition(f".entry {ENTRY}(")[2].partition(")")[0].strip().splitlines()]
    assert parameters == [".u64"] * op.inputs + [".u32"] * len(entry.numbers) + [".u64"] * op.outputs
    assert text.count(".entry") == 1 and ".target sm_80" in text


@pytest.mark.gpu
@pytest.mark.parametrize("case", AHEAD, ids=identity)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_entry(gpu: Gpu, case: GraphCase, dtype: str, tmp_path: Path) -> None:
    """The entry as machine code for this card, launched with the arguments in the order in which TensorRT passes them."""
    op = GRAPH_OPS[case.op]
    assert op.ahead is not None
    entry = entry_of(op, case.shapes, dtype, case.attributes)
    text = entry_source(op.ahead, entry, dtype, op.inputs, op.outputs)
    compiled = Compiler().compile(unit("entry.cu", sources() | {"entry.cu": text}, ()), gpu.device.info.capability, tmp_path)
    inputs, wanted = [gpu.put(x, dtype) for x in case.inputs(dtype)], case.outputs(dtype)
    outputs = [gpu.empty(y.shape, dtype) for y in wanted]
    arguments = [*(Pointer(x.address) for x in inputs), *map(np.int32, entry.numbers), *(Pointer(y.address) for y in outputs)]
    with gpu.device.module(compiled.cubin) as module:
        module.function(ENTRY).launch(gpu.stream, (*entry.grid, 1), (entry.threads, 1, 1), 0, pack(arguments))
        gpu.stream.synchronize()
    for buffer, want in zip(outputs, wanted, strict=True):
        assert_output(gpu.get(buffer), represented(np.asarray(want, np.float32), dtype), dtype)
