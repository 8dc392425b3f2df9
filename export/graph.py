"""Named passes over exported ONNX graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from hart_edge.plugins import ONNX_FUNCTIONS

from .weights import Placement


def attach_functions(model: ir.Model) -> None:
    """Add the body of every hart:: operator that the graph calls; an unknown one is an error."""
    called = {(node.domain, node.op_type) for node in model.graph if node.domain == "hart"}
    for text in ONNX_FUNCTIONS:
        function = ir.serde.deserialize_function(onnx.parser.parse_function(text))
        if (function.domain, function.name) in called:
            model.functions[function.identifier()] = function
            called.remove((function.domain, function.name))
    if called:
        raise ValueError(f"no function body for {sorted(called)}")


def strip_trace_notes(model: ir.Model) -> None:
    """Drop what the tracer noted about its own source: node metadata and doc strings. They would make the bytes vary."""
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
    model.metadata_props.clear()
    model.graph.doc_string = None


def externalise(model: ir.Model, placements: Mapping[str, Placement], prefix: str, location: str) -> None:
    """Point every initializer that is a weight at its place in the weights file.

    A weight is an initializer named as a parameter of the module (`prefix` + its name is in `placements`); the rest
    are the tracer's small shape constants, which stay in the graph.
    """
    for name, value in model.graph.initializers.items():
        place = placements.get(prefix + name)
        if place is None:
            continue
        tensor = value.const_value
        if tensor is None or tuple(tensor.shape.numpy()) != place.shape:
            raise ValueError(f"initializer {name} has another shape than the weight {prefix + name}")
        value.const_value = ir.ExternalTensor(
            location, place.offset, place.nbytes, tensor.dtype, shape=tensor.shape, name=name, base_dir=""
        )


def save(model: ir.Model, path: Path) -> None:
    """Write the graph; external tensors stay where they are."""
    proto = ir.to_proto(model)
    path.write_bytes(proto.SerializeToString(deterministic=True))
