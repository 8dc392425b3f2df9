"""All that is needed to quantise any product of a bundle in any way: graphs, weights and the ranges of activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
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
from .qdq import Insertion, insert, multiply
from .quantized import Quantized, Ranges, quantize
from .ranges import RANGES
from .schemes import Scheme, Treatment
from .sites import Site
from .statistics import Histogram, Peaks
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
        peaks: of every tensor that calibration watched.
        migration: that a product undergoes whose activations are rounded.
        histograms: of every tensor whose range may be needed, after the migration.
        range_: a name of `RANGES`.
        made: numbers computed so far; see `_quantized`.
    """

    bundle: Bundle
    graphs: Mapping[str, ModelProto]
    products: Sequence[Product]
    peaks: Mapping[Key, Peaks]
    migration: Migration
    histograms: Mapping[Key, Histogram]
    range_: str
    made: dict[tuple[str, ...], Quantized] = field(default_factory=dict)

    @property
    def groups(self) -> dict[str, list[Product]]:
        return groups_of(self.products)

    def changed(self, engine: str, treatments: Treatments) -> tuple[ModelProto, dict[str, Tensor]]:
        """An engine's graph with its products treated, and the tensors of the weights file that this changes or adds.

        Groups that `treatments` does not name keep their weights as they are.
        """
        chosen = {p: treatments[p.group] for p in self.products if p.engine == engine and p.group in treatments}
        live, insertions = self._live(chosen), {}
        graph, tensors = self.migrated(engine, live)
        with open_weights(self.bundle) as weights:
            for product, treatment in chosen.items():
                weight = tensors[product.name] if product.name in tensors else weights.get_tensor(product.name)
                if weight.dtype != treatment.weight.dtype:
                    numbers = self._quantized(product, weight, treatment, live)
                    insertions[product.weight] = Insertion(product, treatment, numbers)
                    tensors |= numbers.tensors(product.name)
        insert(graph, insertions)
        return graph, tensors

    def migrated(self, engine: str, sites: Iterable[Site]) -> tuple[ModelProto, dict[str, Tensor]]:
        """An engine's graph with the migrations of its sites and nothing rounded yet, and the tensors that this changes or adds."""
        own = [site for site in sites if site.tensors[0][0] == engine]
        graph, factors = ModelProto(), self.migration.factors(own)
        graph.CopyFrom(self.graphs[engine])
        tensors = dict(factors)
        with open_weights(self.bundle) as weights:
            for name in dict.fromkeys(key.rpartition(".")[0] for key in factors):
                tensors[name] = move(weights.get_tensor(name), *exponents_of(name, factors))
        return graph, tensors | self._multiply(graph, [site for site in own if site.explicit])

    def _multiply(self, graph: ModelProto, sites: Sequence[Site]) -> dict[str, Tensor]:
        """Put the multiplications of explicit sites into a graph; their factors, by name in the weights file."""
        factors = {}
        for site in sites:
            ((engine, tensor),) = site.tensors
            exponent = self.migration.exponents[site]
            name = multiply(graph, tensor, [weight.removeprefix(f"{engine}.") for weight in site.multiplied], len(exponent))
            factors[f"{engine}.{name}"] = torch.exp2(-exponent.float())
        return factors

    def _quantized(self, product: Product, weight: Tensor, treatment: Treatment, live: Sequence[Site]) -> Quantized:
        """The product's numbers, computed once for every treatment and every set of sites around it."""
        around = [site.divided for site in live if product.name in (*site.multiplied, site.divided)]
        key = (product.name, treatment.name, *around)
        if key not in self.made:
            self.made[key] = quantize(product, weight, treatment, self._ranges(product, treatment, live))
        return self.made[key]

    def _live(self, chosen: Mapping[Product, Treatment]) -> list[Site]:
        """Sites between whose weights an activation is rounded; the others gain nothing by a migration."""
        rounded = {product.name for product, treatment in chosen.items() if treatment.activations}
        return [site for site in self.migration.exponents if rounded & set(site.multiplied)]

    def _ranges(self, product: Product, treatment: Treatment, live: Sequence[Site]) -> Ranges:
        source, output = (product.engine, product.source), (product.engine, product.output)
        gram = self.peaks[source].gram if source in self.peaks else None
        if gram is not None and any(source in site.tensors for site in live):
            divisor = self.migration.divisors[source]
            gram = gram / divisor[:, None] / divisor
        if not treatment.activations:
            return Ranges(gram=gram)
        search = RANGES[self.range_]
        reach = search(self.histograms[output], treatment.weight) if product.kind == CONV else None
        return Ranges(search(self.histograms[source], treatment.weight), reach, gram)

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
