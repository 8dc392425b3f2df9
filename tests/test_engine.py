"""The one place that checks tensors, on a fake engine; and the ONNX Runtime engine on graphs of one node."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from hart_edge.runtime.engine import TensorInfo, check_call
from hart_edge.runtime.errors import EngineError
from hart_edge.runtime.ort import OrtEngine


def info(name: str, dtype: str, *shape: int | str) -> TensorInfo:
    return TensorInfo(name, np.dtype(dtype), shape)


FAKE = SimpleNamespace(
    name="fake",
    inputs={t.name: t for t in (info("x", "float32", "R", "L", 19), info("ids", "int64", "R"))},
    outputs={t.name: t for t in (info("y", "float16", "R", 111), info("z", "float32", "L"))},
)


def good_inputs() -> dict[str, np.ndarray]:
    return {"x": np.zeros((2, 7, 19), np.float32), "ids": np.zeros(2, np.int64)}


def good_outputs() -> dict[str, np.ndarray]:
    return {"y": np.zeros((2, 111), np.float16), "z": np.zeros(7, np.float32)}


def refusal(inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> str:
    with pytest.raises(EngineError, match="engine fake") as caught:
        check_call(FAKE, inputs, outputs)
    return str(caught.value)


def test_fitting_tensors_pass() -> None:
    check_call(FAKE, good_inputs(), good_outputs())
    assert refusal({}, good_outputs())  # the same call with nothing in it does not


def test_some_outputs_may_be_left_out_but_not_all() -> None:
    check_call(FAKE, good_inputs(), {"z": good_outputs()["z"]})
    assert "outputs asked for: 0" in refusal(good_inputs(), {})


def test_missing_input_is_named() -> None:
    inputs = good_inputs()
    del inputs["ids"]
    assert "inputs missing: ['ids']" in refusal(inputs, good_outputs())


def test_unknown_names_are_listed_together() -> None:
    message = refusal(good_inputs() | {"colour": np.zeros(1)}, good_outputs() | {"shape": np.zeros(1)})
    assert "names unknown: ['colour', 'shape']" in message


def test_wrong_dtype_shows_both_types() -> None:
    message = refusal(good_inputs() | {"ids": np.zeros(2, np.int32)}, good_outputs())
    assert "ids: int64 [R]" in message
    assert "int32" in message


def test_foreign_byte_order_is_a_wrong_dtype() -> None:
    assert "given >f4" in refusal(good_inputs() | {"x": np.zeros((2, 7, 19), ">f4")}, good_outputs())


@pytest.mark.parametrize("shape", [(2, 7, 18), (2, 7), (2, 7, 19, 1), ()])
def test_wrong_shape_is_shown(shape: tuple[int, ...]) -> None:
    message = refusal(good_inputs() | {"x": np.zeros(shape, np.float32)}, good_outputs())
    assert "x: float32 [R, L, 19]" in message
    assert str(list(shape)) in message


def test_symbol_must_have_one_value_among_the_inputs() -> None:
    message = refusal(good_inputs() | {"ids": np.zeros(3, np.int64)}, good_outputs())
    assert "shape [3]" in message
    assert "'R': 2" in message


def test_symbol_must_have_one_value_in_outputs_too() -> None:
    assert "z: float32 [L]" in refusal(good_inputs(), good_outputs() | {"z": np.zeros(8, np.float32)})


def test_symbol_may_change_between_calls() -> None:
    check_call(FAKE, good_inputs(), good_outputs())
    larger = {"x": np.zeros((989, 1, 19), np.float32), "ids": np.zeros(989, np.int64)}
    check_call(FAKE, larger, {"z": np.zeros(1, np.float32)})
    assert "shape [7]" in refusal(larger, {"z": np.zeros(7, np.float32)})


@pytest.mark.parametrize("x", [np.zeros((19, 7, 2), np.float32).T, np.zeros((2, 14, 19), np.float32)[:, ::2]])
def test_memory_must_be_contiguous(x: np.ndarray) -> None:
    assert "not contiguous" in refusal(good_inputs() | {"x": x}, good_outputs())


def one_node(folder: Path, text: str) -> Path:
    path = folder / "engine.onnx"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["" : 24]> {text}'), path)
    return path


@pytest.fixture
def adder(tmp_path: Path) -> Path:
    return one_node(tmp_path, "agraph (float[N, 3] a, float[N, 3] b) => (float[N, 3] sum) { sum = Add(a, b) }")


def test_ort_describes_its_bindings(adder: Path) -> None:
    with OrtEngine(adder, "adder") as engine:
        assert engine.inputs == {"a": info("a", "float32", "N", 3), "b": info("b", "float32", "N", 3)}
        assert engine.outputs == {"sum": info("sum", "float32", "N", 3)}


def test_ort_computes_into_the_callers_memory(adder: Path) -> None:
    a, b, total = np.ones((19, 3), np.float32), np.full((19, 3), 2, np.float32), np.zeros((19, 3), np.float32)
    with OrtEngine(adder, "adder", threads=1) as engine:
        engine.run({"a": a, "b": b}, {"sum": total})
    np.testing.assert_array_equal(total, np.full((19, 3), 3))


def test_ort_checks_every_call(adder: Path) -> None:
    with OrtEngine(adder, "adder") as engine, pytest.raises(EngineError, match="engine adder"):
        engine.run({"a": np.ones((19, 3), np.float32)}, {"sum": np.zeros((19, 3), np.float32)})


def test_closed_ort_engine_refuses_to_run(adder: Path) -> None:
    engine = OrtEngine(adder, "adder")
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="adder is closed"):
        engine.run({}, {})


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x0b" * 989])
def test_damaged_graph_is_an_engine_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "engine.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match="engine broken does not load") as caught:
        OrtEngine(path, "broken")
    assert "\n" not in str(caught.value)


def test_missing_graph_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"absent\.onnx"):
        OrtEngine(tmp_path / "absent.onnx", "broken")


def test_failure_while_running_is_an_engine_error(tmp_path: Path) -> None:
    path = one_node(tmp_path, "agraph (float[N] a, int64[M] i) => (float[M] picked) { picked = Gather(a, i) }")
    with OrtEngine(path, "gather") as engine, pytest.raises(EngineError, match="engine gather failed"):
        engine.run({"a": np.zeros(3, np.float32), "i": np.array([989], np.int64)}, {"picked": np.zeros(1, np.float32)})


def test_unknown_tensor_type_is_named(tmp_path: Path) -> None:
    path = one_node(tmp_path, "agraph (double[N] a) => (double[N] b) { b = Neg(a) }")
    with pytest.raises(EngineError, match=r"a has type tensor\(double\)"):
        OrtEngine(path, "wide")
