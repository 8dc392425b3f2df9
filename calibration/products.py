"""Finds the products of an engine's graph, and the groups that are judged together. Knows nothing of values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto

Shape = tuple[int, ...]

MATMUL, CONV = "MatMul", "Conv"

_GROUPS = (  # name of the weight in the weights file → group; the first that matches
    (r"(transformer\.layers\.\d+)\.(?:qkv|proj)", r"\1.attention"),
    (r"(text_encoder\.layers\.\d+)\.[qkvo]", r"\1.attention"),
    (r"((?:transformer|text_encoder)\.layers\.\d+)\.(?:gate|up)", r"\1.mlp"),
    (r"((?:transformer|text_encoder)\.layers\.\d+)\.down", r"\1.down"),
    (r"residual_step\.time_.*", r"residual_step.time"),
    (r"residual_step\.(?:layers\.\d+\.|final_)modulation", r"residual_step.modulation"),
    (r"(residual_step\.layers\.\d+)\..*", r"\1"),
    (r"decoder\.(?:post_quant_conv|decoder\.conv_in)", r"decoder.conv_in"),
    (r"decoder\.decoder\.(mid|up\.\d+)\..*", r"decoder.\1"),
    (r"decoder\.decoder\.(.*)", r"decoder.\1"),
)


@dataclass(frozen=True)
class Product:
    """One product of an engine.

    Attributes:
        engine: whose graph it is in.
        weight: name of its weight in that graph.
        kind: MATMUL, weight [in, out], or CONV, weight [out, in, kh, kw].
        source: name of its input tensor.
        output: name of its output tensor.
        shape: of the weight.
    """

    engine: str
    weight: str
    kind: str
    source: str
    output: str
    shape: Shape

    @property
    def name(self) -> str:
        """The weight's name in the weights file."""
        return f"{self.engine}.{self.weight}"

    @property
    def axis(self) -> int:
        """Of the weight: its output channels."""
        return 1 if self.kind == MATMUL else 0

    @property
    def channels(self) -> int:
        """Axis of the input tensor that the weight sums over, counted from the end for MATMUL."""
        return -1 if self.kind == MATMUL else 1

    @property
    def group(self) -> str:
        """What is judged together: part of a block, or a part of an engine."""
        base = self.name.removesuffix(".weight")
        for pattern, group in _GROUPS:
            if match := re.fullmatch(pattern, base):
                return match.expand(group)
        return base


def find_products(model: ModelProto, engine: str) -> list[Product]:
    """Every product with a weight in the weights file, in the order of the graph."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL}
    return [_product(node, engine, stored[node.input[1]]) for node in model.graph.node if _is_product(node, stored)]


def groups_of(products: Iterable[Product]) -> dict[str, list[Product]]:
    """Products by group, in order."""
    found: dict[str, list[Product]] = {}
    for product in products:
        found.setdefault(product.group, []).append(product)
    return found


def _is_product(node: NodeProto, stored: dict[str, TensorProto]) -> bool:
    return node.op_type in (MATMUL, CONV) and node.input[1] in stored


def _product(node: NodeProto, engine: str, weight: TensorProto) -> Product:
    return Product(engine, weight.name, node.op_type, node.input[0], node.output[0], tuple(weight.dims))
