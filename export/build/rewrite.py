"""What the TensorRT parser needs said differently: named passes over a graph in memory. The bundle's files stay as they are.

Each pass returns how often it applied. What is computed stays the same; the tests run rewritten graphs beside the
originals.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto, TensorProto, helper, inliner, parser

from hart_edge.plugins.graph_op import DOMAIN

ATTENTION = "TRT_Attention"

# The parser refuses the body's Slice by a computed length, and drops Attention's `nonpad_kv_seqlen` with a warning. Its own
# operator keeps the lengths; it does not scale.
CACHED_ATTENTION = """
<domain: "hart", opset_import: ["" : 24, "trt" : 1]>
CachedAttention <scale> (q, k, v, k_cache, v_cache, position, length) => (y, k_next, v_next)
{
    k_next = TensorScatter <axis = 2> (k_cache, k, position)
    v_next = TensorScatter <axis = 2> (v_cache, v, position)
    factor = Constant <value_float: float = @scale> ()
    typed = CastLike (factor, q)
    scaled = Mul (q, typed)
    valid = Cast <to = 6> (length)
    y = trt.TRT_Attention (scaled, k_next, v_next, , , valid)
}
"""


def attend_with_lengths(model: ModelProto) -> int:
    """hart::CachedAttention by TensorRT's attention with valid lengths, written out at every call."""
    calls: int = sum(node.op_type == "CachedAttention" for node in model.graph.node)
    if not calls:
        return 0
    others = [function for function in model.functions if function.name != "CachedAttention"]
    del model.functions[:]
    model.functions.extend([*others, parser.parse_function(CACHED_ATTENTION)])
    model.opset_import.append(helper.make_opsetid("trt", 1))
    model.CopyFrom(inliner.inline_selected_functions(model, [(DOMAIN, "CachedAttention")]))
    return calls


def cast_to_uint8_last(model: ModelProto) -> int:
    """Cast to uint8 → Transpose → output as Transpose → Cast: TensorRT takes uint8 only at the edge of a network."""
    graph, done = model.graph, 0
    for number, cast in enumerate(graph.node):
        if cast.op_type != "Cast" or helper.get_node_attr_value(cast, "to") != TensorProto.UINT8:
            continue
        followers = [k for k, node in enumerate(graph.node) if cast.output[0] in node.input]
        if len(followers) == 1 and graph.node[followers[0]].op_type == "Transpose":
            _swap(graph.node, number, followers[0])
            done += 1
    return done


def _swap(nodes: list[NodeProto], first: int, second: int) -> None:
    """source → first → middle → second → result becomes source → second → middle → first → result."""
    a, b = NodeProto(), NodeProto()
    a.CopyFrom(nodes[first])
    b.CopyFrom(nodes[second])
    source, middle, result = a.input[0], a.output[0], b.output[0]
    b.input[0], b.output[0] = source, middle
    a.input[0], a.output[0] = middle, result
    nodes[first].CopyFrom(b)
    nodes[second].CopyFrom(a)


def sum_float32_products(model: ModelProto) -> int:
    """float32 MatMul as Mul and ReduceSum: TensorRT-RTX has no float32 product for Turing (sm75)."""
    kinds = _element_types(model)
    old = list(model.graph.node)
    nodes = [part for node in old for part in (_summed(node) if _is_float32_product(node, kinds) else [node])]
    changed = sum(_is_float32_product(node, kinds) for node in old)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return changed


def _is_float32_product(node: NodeProto, kinds: dict[str, int]) -> bool:
    return node.op_type == "MatMul" and kinds.get(node.input[0]) == TensorProto.FLOAT


def _summed(node: NodeProto) -> list[NodeProto]:
    """a [..., M, K] · b [..., K, N]: the sum over K of a [..., M, K, 1] times b [..., 1, K, N]."""
    (a, b), (y,), name = node.input, node.output, node.name
    axes = {"a": -1, "b": -3, "sum": -2}
    constants = [helper.make_node("Constant", [], [f"{y}_axis_{key}"], f"{name}_axis_{key}", value_ints=[v]) for key, v in axes.items()]
    return [
        *constants,
        helper.make_node("Unsqueeze", [a, f"{y}_axis_a"], [f"{y}_a"], f"{name}_a"),
        helper.make_node("Unsqueeze", [b, f"{y}_axis_b"], [f"{y}_b"], f"{name}_b"),
        helper.make_node("Mul", [f"{y}_a", f"{y}_b"], [f"{y}_terms"], f"{name}_terms"),
        helper.make_node("ReduceSum", [f"{y}_terms", f"{y}_axis_sum"], [y], name, keepdims=0),
    ]


def _element_types(model: ModelProto) -> dict[str, int]:
    graph = model.graph
    found = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return found | {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}


def rewrite(model: ModelProto, targets: tuple[str, ...]) -> dict[str, int]:
    """Apply all passes in place; returns how often each one applied, without those that did not."""
    counts = {"sum_float32_products": sum_float32_products(model) if "sm75" in targets else 0}
    counts["cast_to_uint8_last"] = cast_to_uint8_last(model)
    counts["attend_with_lengths"] = attend_with_lengths(model)
    del model.graph.value_info[:]  # the passes above do not keep it up to date; the parser infers its own
    return {name: count for name, count in counts.items() if count}
