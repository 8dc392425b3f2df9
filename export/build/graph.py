"""One engine's graph as the builder sees it: read from the bundle, rewritten, and what must come of it. Knows nothing of TensorRT."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, ValueInfoProto, helper

from hart_edge.plugins.graph_op import DOMAIN
from hart_edge.runtime.errors import EngineError
from hart_edge.runtime.spec import REEXPORT

from .fuse import fuse
from .rewrite import ATTENTION, rewrite
from .shapes import Shape


@dataclass(frozen=True)
class Binding:
    """An input or output: name, NumPy name of its dtype, shape with the names of the dimensions that vary."""

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class Expected:
    """Layers that the network must have.

    Attributes:
        attention: fused attention layers.
        attention_lengths: those of them that take the number of valid keys.
        kv_cache_updates: caches written in place.
        quantize, dequantize: roundings of activations, and weights and activations that are stored in 8 bits.
    """

    attention: int
    attention_lengths: int
    kv_cache_updates: int
    quantize: int
    dequantize: int


@dataclass(frozen=True)
class Graph:
    """A graph ready to be parsed.

    Attributes:
        data: the serialised ONNX model; its weights stay in the bundle's weights file.
        inputs, outputs: as the bundle declares them.
        rewrites: how often each pass of `rewrite.py` applied.
        fused: nodes of every operator of ours.
    """

    data: bytes
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    expected: Expected
    rewrites: dict[str, int]
    fused: dict[str, int]


def read_graph(path: Path, targets: tuple[str, ...], plugins: Iterable[str] = ()) -> Graph:
    """Read and rewrite an engine's ONNX file, with the named operators of ours; EngineError when it is damaged."""
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise EngineError(f"{path} is no ONNX file: {error}.", REEXPORT) from error
    if not model.graph.node:
        raise EngineError(f"{path} is an empty graph.", REEXPORT)
    fuse(model, plugins)
    rewrites = rewrite(model, targets)
    inputs, outputs = _bindings(model.graph.input), _bindings(model.graph.output)
    return Graph(model.SerializeToString(deterministic=True), inputs, outputs, _expected(model), rewrites, _ours(model, plugins))


def _ours(model: ModelProto, plugins: Iterable[str]) -> dict[str, int]:
    """Nodes of every operator that is to be a plugin, whether they were fused here or came with the file."""
    counts = Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN)
    return {name: counts[name] for name in plugins if counts[name]}


def _bindings(values: Iterable[ValueInfoProto]) -> tuple[Binding, ...]:
    return tuple(_binding(value.name, value.type.tensor_type) for value in values)


def _binding(name: str, kind: onnx.TypeProto.Tensor) -> Binding:
    shape = tuple(dimension.dim_param or dimension.dim_value for dimension in kind.shape.dim)
    return Binding(name, helper.tensor_dtype_to_np_dtype(kind.elem_type).name, shape)


def _expected(model: ModelProto) -> Expected:
    kinds = [node.op_type for node in model.graph.node]
    lengths = kinds.count(ATTENTION)
    rounding = kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")
    return Expected(kinds.count("Attention") + lengths, lengths, kinds.count("TensorScatter"), *rounding)
