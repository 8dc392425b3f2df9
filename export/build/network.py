"""Looks at a parsed TensorRT network: its layers, and whether it is the network that the graph asked for."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hart_edge.runtime.errors import EngineError

from .graph import Binding, Expected, Graph

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
    "FP8": "float8_e4m3fn",
}
"""NumPy's and ml_dtypes' names of TensorRT's types."""

REMEDY = "This release of TensorRT reads the graph differently; build with the release that README.md names."


def check_network(trt: Any, network: Any, graph: Graph) -> list[Any]:
    """The layers; EngineError when layers or bindings are not as declared."""
    layers = [network.get_layer(k) for k in range(network.num_layers)]
    found = _found(trt, layers)
    if found != graph.expected:
        raise EngineError(f"the parsed network has {found}; the graph asks for {graph.expected}.", REMEDY)
    for kind, declared, tensors in (
        ("inputs", graph.inputs, [network.get_input(k) for k in range(network.num_inputs)]),
        ("outputs", graph.outputs, [network.get_output(k) for k in range(network.num_outputs)]),
    ):
        _check_bindings(kind, declared, tensors)
    return layers


def kinds_of(layers: list[Any]) -> dict[str, int]:
    """Number of layers of every kind, sorted."""
    return dict(sorted(Counter(layer.type.name.lower() for layer in layers).items()))


def _found(trt: Any, layers: list[Any]) -> Expected:
    kind = trt.LayerType
    attention = [layer for layer in layers if layer.type == kind.ATTENTION_INPUT]
    counts = [sum(layer.type == wanted for layer in layers) for wanted in (kind.KV_CACHE_UPDATE, kind.QUANTIZE, kind.DEQUANTIZE)]
    return Expected(len(attention), sum(_has_lengths(trt, layer) for layer in attention), *counts)


def _has_lengths(trt: Any, layer: Any) -> bool:
    """Whether one of the layer's inputs is a vector of int32: the number of valid keys of every row."""
    inputs = [layer.get_input(k) for k in range(layer.num_inputs)]
    return any(tensor is not None and tensor.dtype == trt.int32 and len(tensor.shape) == 1 for tensor in inputs)


def _check_bindings(kind: str, declared: tuple[Binding, ...], tensors: list[Any]) -> None:
    want = [(b.name, b.dtype, tuple(-1 if isinstance(d, str) else d for d in b.shape)) for b in declared]
    have = [(t.name, DTYPES.get(t.dtype.name, t.dtype.name), tuple(t.shape)) for t in tensors]
    if want != have:
        differing = sorted(set(want) ^ set(have))
        raise EngineError(f"the parsed network's {kind} differ from the graph's, first {differing[:1] or 'in their order'}.", REMEDY)
