"""All that is needed to quantise any product of a bundle in any way: graphs, weights and the ranges of activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hart_edge.export.stored import exponents_of, move
from hart_edge.runtime.bundle import WEIGHTS, Bundle
from hart_edge.runtime.engine import Engine
from hart_edge.runtime.errors import BundleError
from hart_edge.runtime.pipeline import Pipeline
from hart_edge.runtime.spec import REEXPORT

from .collect import Key
from .graphs import MemoryEngine, load_graph, open_with
from .migrate import Migration
from .products import CONV, Product, find_products, groups_of
from .qdq import Insertion, insert
from .quantized import quantize
from .ranges import RANGES
from .schemes import FLOAT, Scheme, Treatment
from .statistics import Histogram
from .write import embed

Treatments = Mapping[str, Treatment]
"""By group."""


@dataclass(frozen=True)
class Material:
    """A float bundle ready to be quantised.

    Attributes:
        bundle: its weights and graphs are taken.
        graphs: of the engines that take part in the scheme.
        products: of those engines.
        migration: that a product undergoes whose activations are rounded.
        histograms: of every tensor whose range may be needed, after the migration.
        range_: a name of `RANGES`.
    """

    bundle: Bundle
    graphs: Mapping[str, ModelProto]
    products: Sequence[Product]
    migration: Migration
    histograms: Mapping[Key, Histogram]
    range_: str

    @property
    def groups(self) -> dict[str, list[Product]]:
        return groups_of(self.products)

    def changed(self, engine: str, treatments: Treatments) -> tuple[ModelProto, dict[str, Tensor]]:
        """An engine's graph with its products treated, and the tensors of the weights file that this changes or adds.

        Groups that `treatments` does not name stay float.
        """
        graph, insertions = ModelProto(), {}
        graph.CopyFrom(self.graphs[engine])
        chosen = {p: treatments.get(p.group, FLOAT) for p in self.products if p.engine == engine}
        factors = self._factors(chosen)
        tensors = dict(factors)
        with open_weights(self.bundle) as weights:
            for name in {key.rpartition(".")[0] for key in factors}:
                tensors[name] = move(weights.get_tensor(name), *exponents_of(name, factors))
            for product, treatment in chosen.items():
                if treatment.weight is not None:
                    weight = tensors[product.name] if product.name in tensors else weights.get_tensor(product.name)
                    numbers = quantize(product, weight, treatment, *self._ranges(product, treatment))
                    insertions[product.weight] = Insertion(product, treatment, numbers)
                    tensors |= numbers.tensors(product.name)
        insert(graph, insertions)
        return graph, tensors

    def _factors(self, chosen: Mapping[Product, Treatment]) -> dict[str, Tensor]:
        """Of the sites between whose weights an activation is rounded; the others gain nothing by it."""
        rounded = {product.name for product, treatment in chosen.items() if treatment.activations}
        return self.migration.factors(site for site in self.migration.exponents if rounded & set(site.multiplied))

    def _ranges(self, product: Product, treatment: Treatment) -> tuple[float | None, float | None]:
        """Of the input and, of a convolution, the output."""
        form = treatment.weight
        if form is None or not treatment.activations:
            return None, None
        tensors = (product.source, product.output if product.kind == CONV else None)
        found = [None if t is None else RANGES[self.range_](self.histograms[product.engine, t], form) for t in tensors]
        return found[0], found[1]

    @contextmanager
    def pipeline(self, treatments: Treatments) -> Iterator[tuple[Pipeline, set[str]]]:
        """A pipeline with the treated engines in memory, and their names."""
        engines: dict[str, Engine] = {}
        for name in dict.fromkeys(p.engine for p in self.products if treatments.get(p.group) is not None):
            graph, tensors = self.changed(name, treatments)
            if tensors:
                embed(graph, name, tensors)
                engines[name] = MemoryEngine(graph, self.bundle.root, name)
        with open_with(self.bundle, engines) as pipe:
            yield pipe, set(engines)


def graphs_of(bundle: Bundle, scheme: Scheme) -> dict[str, ModelProto]:
    """The graphs of the engines that take part."""
    return {name: load_graph(bundle, name) for name in scheme.engines if name in bundle.manifest.engines}


def products_of(graphs: Mapping[str, ModelProto]) -> list[Product]:
    """The products of all graphs, in order."""
    return [product for name, graph in graphs.items() for product in find_products(graph, name)]


@contextmanager
def open_weights(bundle: Bundle) -> Iterator[Any]:
    """The weights file, to be read tensor by tensor; BundleError when it is damaged."""
    try:
        with safe_open(bundle.file(WEIGHTS), framework="pt") as weights:
            yield weights
    except SafetensorError as error:
        raise BundleError(f"{bundle.root / WEIGHTS}: {error}.", REEXPORT) from error
