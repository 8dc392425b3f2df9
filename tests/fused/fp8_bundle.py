"""An FP8 bundle of any fp16 bundle, for tests: absmax scales of weights, largest inputs over a few prompts, explicit Q/DQ.

What real calibration does better is not done here. The graphs say the same as the weights file, so that ONNX Runtime on the
CPU computes what the fused engine is compared with.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from random_bundle import FP8_PRODUCTS, Headers, write_weights
from safetensors import safe_open

from hart_edge.plugins.quantize import E4M3_MAX, Array, e4m3_codes
from hart_edge.runtime.bundle import MANIFEST, WEIGHTS, Bundle
from hart_edge.runtime.engine import Engine, Tensors
from hart_edge.runtime.files import sha256_of
from hart_edge.runtime.ort import OrtCpu, OrtEngine
from hart_edge.runtime.pipeline import Pipeline

ENGINES = ("text_encoder", "transformer", "residual_condition", "residual_step")
LARGEST = "largest."
"""What the outputs that calibration adds to a graph are called before the weight's name."""
HEADROOM = 2.0
"""Between the largest input of a few prompts and the largest that a scale reaches: E4M3 is floating point, so it costs no digits."""
Products = dict[str, onnx.NodeProto]


def fp8_bundle(source: Bundle, folder: Path, prompts: Sequence[str], parts: Sequence[str] = tuple(FP8_PRODUCTS)) -> Bundle:
    """The source with all products of these parts (`FP8_PRODUCTS`) in FP8, calibrated with the prompts on the CPU."""
    chosen = re.compile("|".join(FP8_PRODUCTS[part] for part in parts))
    largest = _calibrate(source, folder.with_name(f"{folder.name} watched"), prompts, chosen)
    shutil.copytree(source.root, folder)
    headers, tensors = _quantized(source.root / WEIGHTS, largest)
    write_weights(folder / WEIGHTS, headers, tensors)
    places = tensor_offsets(folder / WEIGHTS)
    for engine, file in source.manifest.engines.items():
        _rewrite(folder / file, engine, largest, places, tensor_offsets(source.root / WEIGHTS))
    return _opened(folder)


def _opened(folder: Path) -> Bundle:
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, entry in manifest["files"].items():
        entry |= {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return Bundle(folder)


class _Watched(OrtEngine):
    """An engine that keeps the largest value of every output that calibration added."""

    def __init__(self, path: Path, name: str, found: dict[str, float]) -> None:
        super().__init__(path, name)
        self._found = found

    def run(self, inputs: Tensors, outputs: Tensors) -> None:
        added = {name: np.zeros((), np.float16) for name in self.outputs if name.startswith(LARGEST)}
        super().run(inputs, {**outputs, **added})
        for name, value in added.items():
            weight = name.removeprefix(LARGEST)
            self._found[weight] = max(self._found.get(weight, 0.0), float(value))


class _Watching(OrtCpu):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, float] = {}

    def open_engine(self, path: Path, name: str) -> Engine:
        return _Watched(path, name, self.found)


def _calibrate(source: Bundle, folder: Path, prompts: Sequence[str], chosen: re.Pattern[str]) -> dict[str, float]:
    """Largest input of every chosen product, by its weight."""
    shutil.copytree(source.root, folder)
    for engine in ENGINES:
        if engine in source.manifest.engines:
            path = folder / source.manifest.engines[engine]
            model = onnx.load(str(path), load_external_data=False)
            for weight, node in _products(model, engine, chosen).items():
                magnitude, name = f"{LARGEST}{weight}.abs", f"{LARGEST}{weight}"
                model.graph.node.append(helper.make_node("Abs", [node.input[0]], [magnitude]))
                model.graph.node.append(helper.make_node("ReduceMax", [magnitude], [name], keepdims=0))
                model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT16, []))
            path.write_bytes(model.SerializeToString())
    backend = _Watching()
    with Pipeline._open(Bundle(folder, check_files=False), backend) as pipe:
        pipe.generate_batch(list(prompts), seeds=list(range(len(prompts))))
    return backend.found


def _products(model: onnx.ModelProto, engine: str, chosen: re.Pattern[str]) -> Products:
    """Products by the name that their weight has in the weights file."""
    found = {f"{engine}.{node.input[1]}": node for node in model.graph.node if node.op_type == "MatMul"}
    return {weight: node for weight, node in found.items() if chosen.fullmatch(weight)}


def _quantized(path: Path, largest: Mapping[str, float]) -> tuple[Headers, Iterator[Array]]:
    """The tensors of a weights file, with those that have a largest input in FP8."""
    headers: Headers = []
    with safe_open(path, framework="numpy") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, value in stored.items():
        if name in largest:
            headers += [(name, "F8_E4M3", value.shape), (f"{name}.scale", "F32", ()), (f"{name}.input_scale", "F32", ())]
        else:
            headers.append((name, {"float16": "F16", "float32": "F32", "int64": "I64"}[value.dtype.name], value.shape))

    def tensors() -> Iterator[Array]:
        for name, value in stored.items():
            if name not in largest:
                yield value
                continue
            scale = np.float32(np.abs(value.astype(np.float32)).max() / E4M3_MAX)
            yield from (e4m3_codes(value.astype(np.float32) / scale), scale, np.float32(HEADROOM * largest[name] / E4M3_MAX))

    return headers, tensors()


def tensor_offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor lies in a weights file: first byte and number of bytes."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entries: dict[str, Any] = json.loads(file.read(size))
    entries.pop("__metadata__", None)
    return {
        name: (8 + size + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0]) for name, entry in entries.items()
    }


def _rewrite(
    path: Path, engine: str, largest: Mapping[str, float], places: dict[str, tuple[int, int]], old: dict[str, tuple[int, int]]
) -> None:
    """The graph with Q/DQ around every product that has FP8 weights, on the new weights file."""
    model = onnx.load(str(path), load_external_data=False)
    names = {start: name for name, (start, _) in old.items()}
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            name = names[next(int(entry.value) for entry in tensor.external_data if entry.key == "offset")]
            _point(tensor, places[name])
            if name in largest:
                tensor.data_type = TensorProto.FLOAT8E4M3FN
    zero = helper.make_tensor("fp8.zero", TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True)
    model.graph.initializer.append(zero)
    done: set[str] = set()
    for index in reversed(range(len(model.graph.node))):
        node = model.graph.node[index]
        weight = f"{engine}.{node.input[1]}" if node.op_type == "MatMul" else ""
        if weight in largest:
            for made in reversed(_quantize_product(model, node, weight, places)):
                model.graph.node.insert(index, made)
            done.add(weight)
    assert done == {weight for weight in largest if weight.startswith(f"{engine}.")}
    path.write_bytes(model.SerializeToString())


def _quantize_product(
    model: onnx.ModelProto, node: onnx.NodeProto, weight: str, places: dict[str, tuple[int, int]]
) -> list[onnx.NodeProto]:
    x, w = node.input
    scales = [f"{weight}.input_scale", f"{weight}.scale"]
    for name in scales:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
        _point(tensor, places[name])
        model.graph.initializer.append(tensor)
    # Through float32: with float16 tensors and float32 scales ONNX Runtime 1.32 moves Q/DQ over a Reshape and loses output_dtype.
    made = [
        helper.make_node("Cast", [x], [f"{weight}.x.wide"], to=TensorProto.FLOAT),
        helper.make_node("QuantizeLinear", [f"{weight}.x.wide", scales[0], "fp8.zero"], [f"{weight}.x.codes"]),
        helper.make_node("DequantizeLinear", [f"{weight}.x.codes", scales[0]], [f"{weight}.x.real"]),
        helper.make_node("Cast", [f"{weight}.x.real"], [f"{weight}.x"], to=TensorProto.FLOAT16),
        helper.make_node("DequantizeLinear", [w, scales[1]], [f"{weight}.w.real"]),
        helper.make_node("Cast", [f"{weight}.w.real"], [f"{weight}.w"], to=TensorProto.FLOAT16),
    ]
    node.input[0], node.input[1] = f"{weight}.x", f"{weight}.w"
    return made


def _point(tensor: TensorProto, place: tuple[int, int]) -> None:
    """Make the tensor lie there in the weights file."""
    del tensor.external_data[:]
    for key, value in (("location", WEIGHTS), ("offset", str(place[0])), ("length", str(place[1]))):
        tensor.external_data.add(key=key, value=value)
