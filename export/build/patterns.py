"""Looking through a graph: who makes a tensor, who reads it, which constant it is. Changes nothing."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper


class GraphView:
    """A graph as it is now; make a new view after changing it.

    Attributes:
        producer: the node that makes a tensor, by the tensor's name.
        place: the position of a node among the graph's, by its first output.
    """

    def __init__(self, graph: GraphProto) -> None:
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self.producer = {name: node for node in graph.node for name in node.output}
        self.place = {node.output[0]: number for number, node in enumerate(graph.node)}
        self._readers: dict[str, int] = defaultdict(int)
        for node in graph.node:
            for name in node.input:
                self._readers[name] += 1
        for value in graph.output:
            self._readers[value.name] += 1
        values = (*graph.value_info, *graph.input, *graph.output)
        self._shapes = {value.name: tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim) for value in values}
        self._shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}

    def made_by(self, name: str, kind: str) -> NodeProto | None:
        """The node of that type that makes the tensor, if one does."""
        node = self.producer.get(name)
        return node if node is not None and node.op_type == kind and node.domain in ("", "ai.onnx") else None

    def readers(self, name: str) -> int:
        """How often the tensor is read; an output of the graph counts as once."""
        return self._readers[name]

    def is_weight(self, name: str) -> bool:
        return name in self._constants

    def shape(self, name: str) -> tuple[int | str, ...] | None:
        return self._shapes.get(name)

    def tensor(self, name: str) -> TensorProto:
        """An initializer."""
        return self._constants[name]

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """A small constant's value: an initializer that lies in the graph itself, or a Constant node; else None."""
        tensor = self._constants.get(name)
        if tensor is not None:
            return None if tensor.data_location == TensorProto.EXTERNAL else numpy_helper.to_array(tensor)
        node = self.made_by(name, "Constant")
        return None if node is None else np.asarray(_literal(node))


def _literal(node: NodeProto) -> Any:
    value = helper.get_attribute_value(node.attribute[0])
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """An attribute's value; the default where the node has none of that name."""
    for found in node.attribute:
        if found.name == name:
            return helper.get_attribute_value(found)
    return default


def pair(node: NodeProto, first: str) -> str:
    """The other one of the two inputs of a node that has `first` among them."""
    a, b = node.input
    return b if a == first else a
