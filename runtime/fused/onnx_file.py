"""Reads nodes and small constants of an ONNX file, without the onnx package.

Only what `facts.py` asks for is understood: the wire format of protocol buffers, the graph's nodes with their float
attributes, and float initializers stored in the file itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError
from ..spec import REEXPORT

_GRAPH, _NODES, _INITIALIZERS = 7, 1, 5
_NODE_INPUTS, _NODE_OUTPUTS, _NODE_TYPE, _NODE_ATTRIBUTES = 1, 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_FLOAT = 1, 2
_TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 2, 8, 9
_FLOAT_TENSOR = 1

Value = int | bytes


@dataclass(frozen=True)
class Node:
    """One operator: its type, names of inputs and outputs, and its attributes that are single floats."""

    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    floats: dict[str, float]


@dataclass(frozen=True)
class OnnxGraph:
    """The nodes in order, and the float32 scalars among the initializers by name."""

    nodes: tuple[Node, ...]
    scalars: dict[str, float]


def read_graph(path: Path) -> OnnxGraph:
    """BundleError when the file is no ONNX model."""
    try:
        graph = _first(path.read_bytes(), _GRAPH)
        nodes = tuple(_node(value) for field, value in _fields(graph) if field == _NODES and isinstance(value, bytes))
        tensors = (_scalar(value) for field, value in _fields(graph) if field == _INITIALIZERS and isinstance(value, bytes))
        return OnnxGraph(nodes, dict(pair for pair in tensors if pair))
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise BundleError(f"{path} cannot be read as an ONNX graph: {error}.", REEXPORT) from error


def _node(data: bytes) -> Node:
    fields = list(_fields(data))
    text = {key: tuple(_text(v) for field, v in fields if field == key) for key in (_NODE_INPUTS, _NODE_OUTPUTS, _NODE_TYPE)}
    floats = (_float_attribute(value) for field, value in fields if field == _NODE_ATTRIBUTES and isinstance(value, bytes))
    return Node(text[_NODE_TYPE][0], text[_NODE_INPUTS], text[_NODE_OUTPUTS], dict(pair for pair in floats if pair))


def _float_attribute(data: bytes) -> tuple[str, float] | None:
    fields = dict(_fields(data))
    if _ATTRIBUTE_FLOAT not in fields:
        return None
    return _text(fields[_ATTRIBUTE_NAME]), _float(fields[_ATTRIBUTE_FLOAT])


def _scalar(data: bytes) -> tuple[str, float] | None:
    fields = dict(_fields(data))
    raw = fields.get(_TENSOR_RAW)
    if fields.get(_TENSOR_TYPE) != _FLOAT_TENSOR or not isinstance(raw, bytes) or len(raw) != 4:
        return None
    return _text(fields[_TENSOR_NAME]), _float(raw)


def _first(data: bytes, wanted: int) -> bytes:
    for field, value in _fields(data):
        if field == wanted and isinstance(value, bytes):
            return value
    raise ValueError("it has no graph")


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """(field number, value) of a message: numbers as int, everything else, fixed-size numbers included, as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at) if kind in (1, 5) else (-1, at)
        if size < 0 or at + size > len(data):
            raise ValueError(f"field {key >> 3} at byte {at} is damaged")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def _text(value: Value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _float(value: Value) -> float:
    number: float = struct.unpack("<f", value)[0] if isinstance(value, bytes) and len(value) == 4 else float(value)
    return number
