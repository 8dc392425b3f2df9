"""Standard operators to those of `plugins/graph_ops.py`: passes over a graph in memory, applied only for TensorRT plugins.

The bundle's files keep the standard operators. A fused node has a function body of the same meaning, so that a parser
without the plugin computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, parser

from hart_edge.plugins.graph_op import DOMAIN, PLUGIN_VERSION
from hart_edge.plugins.graph_ops import GRAPH_OPS
from hart_edge.plugins.group_norm_silu import GROUPS

from .patterns import GraphView, attribute, pair


@dataclass(frozen=True)
class Match:
    """Nodes that one node replaces.

    Attributes:
        last: the node in whose place the new one is put; all its inputs are known there.
        replaced: outputs of the nodes that go.
        inputs, outputs, attributes: of the new node.
        weights: initializers to be added.
    """

    last: NodeProto
    replaced: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, float | int] = field(default_factory=dict)
    weights: tuple[TensorProto, ...] = ()


Finder = Callable[[GraphView, NodeProto], "Match | None"]


def fuse(model: ModelProto, names: Iterable[str]) -> dict[str, int]:
    """Put the named operators into the graph; returns how many of each, without those that found no place."""
    counts: dict[str, int] = {}
    for name in names:
        matches = _matches(model.graph, FINDERS[name])
        if matches:
            _replace(model, name, matches)
            counts[name] = len(matches)
    if counts and not any(entry.domain == DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return counts


def _matches(graph: GraphProto, find: Finder) -> list[Match]:
    view = GraphView(graph)
    return [match for match in (find(view, node) for node in graph.node) if match is not None]


def _replace(model: ModelProto, name: str, matches: list[Match]) -> None:
    graph = model.graph
    gone = {output for match in matches for output in match.replaced}
    put = {match.last.output[0]: _node(name, number, match) for number, match in enumerate(matches)}
    nodes = []
    for node in graph.node:
        if node.output[0] in put:
            nodes.append(put[node.output[0]])
        elif node.output[0] not in gone:
            nodes.append(node)
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(_live(kept, {value.name for value in graph.output}))
    _drop_unread(graph)
    graph.initializer.extend(weight for match in matches for weight in match.weights)
    model.functions.append(parser.parse_function(GRAPH_OPS[name].function))


def _node(name: str, number: int, match: Match) -> NodeProto:
    plugin = {"plugin_namespace": DOMAIN, "plugin_version": PLUGIN_VERSION}
    return helper.make_node(name, match.inputs, match.outputs, f"{name}_{number}", domain=DOMAIN, **match.attributes, **plugin)


def _live(nodes: list[NodeProto], wanted: set[str]) -> list[NodeProto]:
    """The nodes without those that nothing reads any more."""
    live: list[NodeProto] = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            live.append(node)
    return live[::-1]


def _drop_unread(graph: GraphProto) -> None:
    read = {name for node in graph.node for name in node.input}
    kept = [TensorProto.FromString(tensor.SerializeToString()) for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _add_rms_norm(view: GraphView, node: NodeProto) -> Match | None:
    """RMSNormalization of a sum of two tensors of one shape; the sum stays an output, for the next residual."""
    total = view.made_by(node.input[0], "Add") if node.op_type == "RMSNormalization" else None
    if total is None or attribute(node, "axis", -1) != -1 or any(map(view.is_weight, total.input)):
        return None
    a, b = (view.shape(name) for name in total.input)
    if a is None or a != b:
        return None
    epsilon = attribute(node, "epsilon", 1e-5)
    outputs = (node.output[0], total.output[0])
    return Match(total, (node.output[0],), (*total.input, node.input[1]), outputs, {"epsilon": epsilon})


def _swiglu(view: GraphView, node: NodeProto) -> Match | None:
    """gate · sigmoid(gate) · up."""
    if node.op_type != "Mul":
        return None
    for name in node.input:
        silu = view.made_by(name, "Mul")
        gate = None if silu is None else _silu_of(view, silu)
        up = pair(node, name)
        if silu is None or gate is None or view.readers(name) != 1 or view.is_weight(up) or view.shape(up) != view.shape(gate):
            continue
        return Match(node, (silu.output[0],), (gate, up), (node.output[0],))
    return None


def _silu_of(view: GraphView, node: NodeProto) -> str | None:
    """x, if the product is x · sigmoid(x)."""
    for name in node.input:
        share = view.made_by(name, "Sigmoid")
        if share is not None and share.input[0] == pair(node, name):
            return share.input[0]
    return None


def _layer_norm_modulate(view: GraphView, node: NodeProto) -> Match | None:
    """layer_norm(x) · (1 + scale) + shift, with weight and bias, shift and scale the first two of three equal parts."""
    if node.op_type != "Add":
        return None
    for name in node.input:
        scaled, shift = view.made_by(name, "Mul"), view.made_by(pair(node, name), "Split")
        if scaled is None or shift is None or len(shift.output) != 3 or view.readers(name) != 1:
            continue
        for factor in scaled.input:
            norm, one = view.made_by(pair(scaled, factor), "LayerNormalization"), view.made_by(factor, "Add")
            if norm is None or one is None or len(norm.input) != 3 or not _is_modulation(view, one, pair(node, name), shift):
                continue
            attributes = {"epsilon": attribute(norm, "epsilon", 1e-5)}
            inputs = (norm.input[0], shift.input[0], norm.input[1], norm.input[2])
            return Match(node, (name,), inputs, (node.output[0],), attributes)
    return None


def _is_modulation(view: GraphView, one: NodeProto, shift: str, split: NodeProto) -> bool:
    """Whether the sum is 1 + the second part, and `shift` the first."""
    scale = split.output[1]
    if scale not in one.input or shift != split.output[0]:
        return False
    constant = view.constant(pair(one, scale))
    return constant is not None and constant.size == 1 and float(constant) == 1.0


def _group_norm_silu(view: GraphView, node: NodeProto) -> Match | None:
    """SiLU of a group normalisation that is written as an instance normalisation over [B, groups, rest]."""
    moved_name = _silu_of(view, node) if node.op_type == "Mul" else None
    moved = None if moved_name is None else view.made_by(moved_name, "Add")
    if moved_name is None or moved is None or view.readers(moved_name) != 2:
        return None
    scaled_name = next((name for name in moved.input if view.made_by(name, "Mul")), None)
    if scaled_name is None:
        return None
    scaled = view.producer[scaled_name]
    flat_name = next((name for name in scaled.input if view.made_by(name, "Reshape")), None)
    if flat_name is None:
        return None
    weight, bias = pair(scaled, flat_name), pair(moved, scaled_name)
    source = _group_source(view, view.producer[flat_name])
    if source is None or not (view.is_weight(weight) and view.is_weight(bias)):
        return None
    x, epsilon, height, width = source
    weights = tuple(_channels(view, name) for name in (weight, bias))
    attributes = {"epsilon": epsilon, "height": height, "width": width}
    inputs = (x, *(tensor.name for tensor in weights))
    return Match(node, (moved_name,), inputs, (node.output[0],), attributes, weights)


def _group_source(view: GraphView, back: NodeProto) -> tuple[str, float, int, int] | None:
    """x, epsilon, H and W of Reshape(InstanceNormalization(Reshape(x), 1, 0)); None for anything else."""
    norm = view.made_by(back.input[0], "InstanceNormalization")
    grouped = None if norm is None else view.made_by(norm.input[0], "Reshape")
    shape = view.constant(back.input[1])
    if norm is None or grouped is None or shape is None or len(shape) != 4 or min(shape[2:]) < 1:
        return None
    grouping = view.constant(grouped.input[1])
    if grouping is None or len(grouping) != 3 or grouping[1] != GROUPS:
        return None
    return grouped.input[0], attribute(norm, "epsilon", 1e-5), int(shape[2]), int(shape[3])


def _channels(view: GraphView, name: str) -> TensorProto:
    """A constant [C, 1, 1] as [C], under a name of its own."""
    values = view.constant(name)
    if values is None:
        raise ValueError(f"{name} is a weight outside the graph")
    return numpy_helper.from_array(np.ascontiguousarray(values.reshape(-1)), f"{name}_channels")


def _split_rotary(view: GraphView, node: NodeProto) -> Match | None:
    """From the packed product to the three inputs of hart::CachedAttention."""
    if node.op_type != "CachedAttention":
        return None
    q, k, v = node.input[:3]
    rotated = [_rotated(view, name) for name in (q, k)]
    if rotated[0] is None or rotated[1] is None or rotated[0][1:] != rotated[1][1:]:
        return None
    (q0, cos, sin), k0 = rotated[0], rotated[1][0]
    parts = [_part(view, name) for name in (q0, k0, v)]
    sources = {part[0] for part in parts if part is not None}
    if [part and part[1] for part in parts] != [0, 1, 2] or len(sources) != 1:
        return None
    packed = _packed(view, sources.pop())
    heads = view.shape(node.input[3])
    if packed is None or heads is None:
        return None
    last = max((view.producer[name] for name in (q, k, v)), key=lambda made: view.place[made.output[0]])
    return Match(last, (q, k, v), (packed, cos, sin), (q, k, v), {"heads": int(heads[1])})


def _rotated(view: GraphView, name: str) -> tuple[str, str, str] | None:
    """x, cos and sin of x · cos + swap(x) · sin."""
    total = view.made_by(name, "Add")
    products = [view.made_by(part, "Mul") for part in total.input] if total is not None else []
    if len(products) != 2 or products[0] is None or products[1] is None:
        return None
    plain, crossed = products
    swapped = next((part for part in crossed.input if view.made_by(part, "Reshape")), None)
    x = None if swapped is None else _swapped(view, swapped)
    if swapped is None or x is None or x not in plain.input:
        return None
    return x, pair(plain, x), pair(crossed, swapped)


def _swapped(view: GraphView, name: str) -> str | None:
    """x, if the tensor is x with the halves of its last axis exchanged."""
    outer = view.producer[name]
    gather = view.made_by(outer.input[0], "Gather")
    inner = None if gather is None else view.made_by(gather.input[0], "Reshape")
    order = None if gather is None else view.constant(gather.input[1])
    if inner is None or order is None or order.tolist() != [1, 0]:
        return None
    return inner.input[0]


def _part(view: GraphView, name: str) -> tuple[str, int] | None:
    """The tensor and the index along its first axis of Squeeze(Slice(tensor, index, index + 1, axis 0))."""
    squeeze = view.made_by(name, "Squeeze")
    cut = None if squeeze is None else view.made_by(squeeze.input[0], "Slice")
    if cut is None:
        return None
    start, axis = view.constant(cut.input[1]), view.constant(cut.input[3])
    if start is None or axis is None or axis.tolist() != [0]:
        return None
    return cut.input[0], int(start[0])


def _packed(view: GraphView, name: str) -> str | None:
    """The product that Reshape and Transpose bring into the order [3, R, H, L, D]."""
    order = view.made_by(name, "Transpose")
    apart = None if order is None else view.made_by(order.input[0], "Reshape")
    if order is None or apart is None or list(attribute(order, "perm", [])) != [2, 0, 3, 1, 4]:
        return None
    return str(apart.input[0])


FINDERS: dict[str, Finder] = {
    "AddRmsNorm": _add_rms_norm,
    "SplitRotary": _split_rotary,
    "SwiGlu": _swiglu,
    "LayerNormModulate": _layer_norm_modulate,
    "GroupNormSilu": _group_norm_silu,
}
