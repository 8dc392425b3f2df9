"""Writes quantisation into a graph as explicit QuantizeLinear and DequantizeLinear nodes, which every backend reads.

    weight      stored → DequantizeLinear(scale) → product          (float16 in a graph of float32: Cast)
    activation  x → QuantizeLinear(input_scale) → DequantizeLinear(input_scale) → product
    convolution → QuantizeLinear(output_scale) → DequantizeLinear(output_scale) →   (W8A8 only)
    activation  x → Mul(factor) → all of the above      (where a migration has no weight before x to go into)

Scales are float32 in the weights file; a graph that computes in float16 casts them, which loses nothing (`exact_scale`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx import ModelProto, NodeProto, TensorProto, helper

from .graphs import element_type
from .products import CONV, MATMUL, Product
from .quantized import Quantized
from .schemes import Format, Treatment

ZERO = "quantized_zero"
OPSET = 21
"""First in which a scale may be float16 and which ONNX Runtime's CUDA provider normalises (export/engines.py); what the decoder's
graph of opset 18 has besides is the same in it."""


@dataclass
class Insertion:
    """One quantised product of a graph."""

    product: Product
    treatment: Treatment
    numbers: Quantized


@dataclass
class _Writer:
    """A graph under change; nodes to come before or after existing ones, by the node's position."""

    model: ModelProto
    form: Format
    element: int
    before: dict[int, list[NodeProto]] = field(default_factory=dict)
    after: dict[int, list[NodeProto]] = field(default_factory=dict)
    readers: dict[str, int] = field(default_factory=dict)  # tensor → products so far that read it rounded
    scales: dict[str, str] = field(default_factory=dict)  # scale in the file → scale in the graph's type
    at: int = 0

    def put(self, kind: str, inputs: list[str], output: str, **attributes: int) -> str:
        self.before.setdefault(self.at, []).append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def external(self, name: str, kind: int, shape: tuple[int, ...]) -> str:
        """An initializer that lies in the weights file; where, is filled in when that is written."""
        tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        self.model.graph.initializer.append(tensor)
        return name

    def scale(self, name: str, shape: tuple[int, ...]) -> str:
        """A scale of the weights file, in the type that the graph computes in."""
        if name not in self.scales:
            self.external(name, TensorProto.FLOAT, shape)
            same = self.element == TensorProto.FLOAT
            self.scales[name] = name if same else self.put("Cast", [name], f"{name}.cast", to=self.element)
        return self.scales[name]


def multiply(model: ModelProto, tensor: str, weights: Sequence[str], channels: int) -> str:
    """Multiply a tensor by a factor [channels] of the weights file for the products that have these weights; returns its name.

    To be called before `insert`, while products still read their weights directly.
    """
    graph, name, result = model.graph, f"{tensor}.factor", f"{tensor}.multiplied"
    readers = [k for k, node in enumerate(graph.node) if node.op_type == MATMUL and node.input[0] == tensor and node.input[1] in weights]
    element = element_type(model, graph.node[readers[0]].output[0])
    graph.initializer.append(TensorProto(name=name, data_type=TensorProto.FLOAT, dims=(channels,), data_location=TensorProto.EXTERNAL))
    factor, added = name, list[NodeProto]()
    if element != TensorProto.FLOAT:
        factor = f"{name}.cast"
        added.append(helper.make_node("Cast", [name], [factor], factor, to=element))
    added.append(helper.make_node("Mul", [tensor, factor], [result], result))
    for k in readers:
        graph.node[k].input[0] = result
    nodes = [*graph.node[: readers[0]], *added, *graph.node[readers[0] :]]
    del graph.node[:]
    graph.node.extend(nodes)
    return name


def insert(model: ModelProto, insertions: Mapping[str, Insertion]) -> None:
    """Change the graph in place.

    Args:
        model: of one engine.
        insertions: by weight; every one names a product of this graph.
    """
    for entry in model.opset_import if insertions else ():
        if entry.domain == "":
            entry.version = max(entry.version, OPSET)
    for form in dict.fromkeys(insertion.treatment.weight for insertion in insertions.values()):
        _insert(model, form, {w: i for w, i in insertions.items() if i.treatment.weight is form})


def _insert(model: ModelProto, form: Format, insertions: Mapping[str, Insertion]) -> None:
    graph = model.graph
    first = next(iter(insertions.values())).product
    writer = _Writer(model, form, element_type(model, first.output))
    for number, node in enumerate(graph.node):
        insertion = insertions.get(node.input[1]) if node.op_type in (MATMUL, CONV) else None
        if insertion is not None:
            writer.at = number
            _rewrite(writer, node, insertion)
    if any(i.treatment.activations for i in insertions.values()):
        graph.initializer.append(helper.make_tensor(f"{ZERO}_{form.name}", getattr(TensorProto, form.name), (), b"\0", raw=True))
    nodes = [part for k, node in enumerate(graph.node) for part in (*writer.before.get(k, ()), node, *writer.after.get(k, ()))]
    del graph.node[:]
    graph.node.extend(nodes)


def _rewrite(writer: _Writer, node: NodeProto, insertion: Insertion) -> None:
    product, numbers = insertion.product, insertion.numbers
    node.input[1] = _weight(writer, product, numbers)
    if insertion.treatment.activations:
        node.input[0] = _activation(writer, product, node.input[0])
    if numbers.output_scale is not None:
        _output(writer, node, product)
    if numbers.scale is not None:
        _keep_bias_apart(writer.model, node)


def _weight(writer: _Writer, product: Product, numbers: Quantized) -> str:
    weight = next(tensor for tensor in writer.model.graph.initializer if tensor.name == product.weight)
    weight.data_type = getattr(TensorProto, writer.form.name)
    if numbers.scale is None:
        return writer.put("Cast", [product.weight], f"{product.weight}.real", to=writer.element)
    scale = writer.scale(f"{product.weight}.scale", tuple(numbers.scale.shape))
    axis = {"axis": product.axis} if numbers.scale.dim() else {}
    return writer.put("DequantizeLinear", [product.weight, scale], f"{product.weight}.real", **axis)


def _activation(writer: _Writer, product: Product, source: str) -> str:
    """The product's input `source`, rounded. Every reader of a tensor has its own pair of nodes, each pair with another `axis`.

    ONNX Runtime computes a product in integers only if nothing else reads the QuantizeLinear before it, and merges nodes that are
    equal. The standard ignores `axis` where the scale is a scalar, so it can tell them apart.
    """
    scale, zero = writer.scale(f"{product.weight}.input_scale", ()), f"{ZERO}_{writer.form.name}"
    axis = writer.readers.setdefault(source, 0)
    writer.readers[source] += 1
    stored = writer.put("QuantizeLinear", [source, scale, zero], f"{product.weight}.input_stored", axis=axis)
    return writer.put("DequantizeLinear", [stored, scale, zero], f"{product.weight}.input", axis=axis)


def _output(writer: _Writer, node: NodeProto, product: Product) -> None:
    """Round the result under its old name: the product itself gets another."""
    scale, zero = writer.scale(f"{product.weight}.output_scale", ()), f"{ZERO}_{writer.form.name}"
    raw, stored = f"{product.output}.exact", f"{product.output}.stored"
    node.output[0] = raw
    writer.after[writer.at] = [
        helper.make_node("QuantizeLinear", [raw, scale, zero], [stored], stored),
        helper.make_node("DequantizeLinear", [stored, scale, zero], [product.output], product.output),
    ]


def _keep_bias_apart(model: ModelProto, product: NodeProto) -> None:
    """The Add of a bias as Sum: ONNX Runtime makes MatMul and Add a Gemm before it looks for what it computes in integers or with
    stored 8-bit weights (MatMulIntegerToFloat, MatMulNBits), and then finds nothing."""
    followers = [node for node in model.graph.node if product.output[0] in node.input]
    if product.op_type == MATMUL and len(followers) == 1 and followers[0].op_type == "Add":
        followers[0].op_type = "Sum"
