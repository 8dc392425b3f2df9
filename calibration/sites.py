"""Finds the places of a graph where the spread of an activation can be moved into weights. Knows nothing of values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from .collect import Key
from .products import MATMUL, Product


@dataclass(frozen=True)
class Site:
    """Where a migration can happen, by names in the weights file.

    Attributes:
        divided: weight whose last axis is divided: of a norm [K], or of a product [in, K]. Where no weight stands before the
            activation, the activation itself, ENGINE.TENSOR.
        reads: activations between, each with the weights [K, out] that multiply it.
        explicit: no weight stands before it: the graph gets a multiplication of its own.
    """

    divided: str
    reads: tuple[tuple[Key, tuple[str, ...]], ...]
    explicit: bool = False

    @property
    def readers(self) -> dict[Key, tuple[str, ...]]:
        return dict(self.reads)

    @property
    def tensors(self) -> tuple[Key, ...]:
        return tuple(key for key, _ in self.reads)

    @property
    def multiplied(self) -> tuple[str, ...]:
        return tuple(name for _, names in self.reads for name in names)


def find_sites(model: ModelProto, engine: str, products: Sequence[Product]) -> list[Site]:
    """Every place of an engine's graph where a migration changes nothing but the activations themselves; a product's input is at one
    place at most, without a multiplication of its own if that is possible."""
    finder = _Finder(model, engine, products)
    free = [*finder.norms(), *finder.gates()]
    return [*free, *finder.others({tensor for site in free for tensor in site.tensors})]


class _Finder:
    def __init__(self, model: ModelProto, engine: str, products: Sequence[Product]) -> None:
        self.engine, self.nodes = engine, list(model.graph.node)
        self.outputs = {value.name for value in model.graph.output}
        self.products = {p.output: p for p in products if p.engine == engine and p.kind == MATMUL}

    def norms(self) -> list[Site]:
        """RMSNorms by weight, where nothing but products reads any of them."""
        shared: dict[str, list[str]] = {}
        for node in self.nodes:
            if node.op_type == "RMSNormalization":
                shared.setdefault(node.input[1], []).append(node.output[0])
        return [site for weight, tensors in shared.items() if (site := self._site(weight, tensors))]

    def gates(self) -> list[Site]:
        """a · b, read by products alone, where b is a product without bias that nothing else reads."""
        return [site for node in self.nodes if node.op_type == "Mul" and (site := self._gate(node))]

    def others(self, taken: set[Key]) -> list[Site]:
        """What else products read."""
        found: dict[Key, list[str]] = {}
        for product in self.products.values():
            found.setdefault((self.engine, product.source), []).append(product.name)
        return [Site(".".join(key), ((key, tuple(names)),), explicit=True) for key, names in found.items() if key not in taken]

    def _gate(self, node: NodeProto) -> Site | None:
        own = [self.products[name] for name in node.input if name in self.products and len(self._readers(name)) == 1]
        return self._site(own[0].weight, [node.output[0]]) if own else None

    def _site(self, divided: str, tensors: Sequence[str]) -> Site | None:
        reads = []
        for tensor in tensors:
            products = [self.products.get(node.output[0]) for node in self._readers(tensor)]
            names = tuple(product.name for product in products if product is not None)
            if not products or len(names) < len(products) or tensor in self.outputs:
                return None
            reads.append(((self.engine, tensor), names))
        return Site(f"{self.engine}.{divided}", tuple(reads))

    def _readers(self, tensor: str) -> list[NodeProto]:
        return [node for node in self.nodes if tensor in node.input]
