"""Moving the spread of activations into weights: where, by how much, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from hart_edge.calibration.graphs import MemoryEngine, open_with
from hart_edge.calibration.material import Material
from hart_edge.calibration.migrate import Migration, choose
from hart_edge.calibration.qdq import multiply
from hart_edge.calibration.replay import record, replay
from hart_edge.calibration.schemes import W8A8
from hart_edge.calibration.sites import Site, find_sites
from hart_edge.calibration.statistics import Peaks
from hart_edge.calibration.write import embed
from hart_edge.export.stored import move


def test_sites_of_the_transformer(material: Material) -> None:
    found = find_sites(material.graphs["transformer"], "transformer", material.products)
    sites = {site.divided: site for site in found if not site.explicit}
    layers = [f"transformer.layers.{k}" for k in range(2)]
    assert sorted(sites) == sorted(f"{layer}.{part}.weight" for layer in layers for part in ("norm", "up"))
    assert sites["transformer.layers.1.norm.weight"].multiplied == tuple(
        f"transformer.layers.1.{part}.weight" for part in ("qkv", "gate", "up")
    )  # both norms of a block share the weight
    assert len(sites["transformer.layers.1.norm.weight"].tensors) == 2
    assert sites["transformer.layers.0.up.weight"].multiplied == ("transformer.layers.0.down.weight",)


def test_the_heads_norm_is_no_site(material: Material) -> None:
    sites = find_sites(material.graphs["transformer"], "transformer", material.products)
    assert "transformer.head_norm.weight" not in {site.divided for site in sites}  # its result is modulated before it is multiplied
    (head,) = (site for site in sites if site.multiplied == ("transformer.head.weight",))
    assert head.explicit


def test_every_input_of_a_product_is_at_one_site(material: Material) -> None:
    for name in ("transformer", "residual_step"):
        sites = find_sites(material.graphs[name], name, material.products)
        sources = [(p.engine, p.source) for p in material.products if p.engine == name]
        assert sorted(tensor for site in sites for tensor in site.tensors) == sorted(set(sources))
    (modulation,) = (site for site in sites if "residual_step.final_modulation.weight" in site.multiplied)
    assert modulation.explicit and len(modulation.multiplied) > 2


def test_a_migrated_model_computes_the_same(material: Material) -> None:
    generator = torch.Generator().manual_seed(0)
    sites = [site for name, graph in material.graphs.items() for site in find_sites(graph, name, material.products)]
    width = {site: len(material.peaks[site.tensors[0]].largest) for site in sites}
    migration = Migration({site: torch.randint(-3, 4, (width[site],), generator=generator).to(torch.int8) for site in sites})
    moved = replace(material, migration=migration, histograms={}, made={})
    engines = {}
    for name in {site.divided.partition(".")[0] for site in sites}:
        graph, tensors = moved.migrated(name, sites)
        embed(graph, name, tensors)
        engines[name] = MemoryEngine(graph, material.bundle.root, name)
    with open_with(material.bundle, {}) as pipe:
        recorded = record(pipe, ["a boat"])
    with open_with(material.bundle, dict(engines)) as pipe:
        damage = replay(pipe, recorded, engines)
    assert max(damage.kl) < 1e-9 and damage.latent < 1e-4


def test_what_is_rounded_has_been_multiplied(material: Material) -> None:
    sites = [s for s in find_sites(material.graphs["residual_step"], "residual_step", material.products) if s.explicit]
    exponents = {site: torch.full((len(material.peaks[site.tensors[0]].largest),), 2, dtype=torch.int8) for site in sites}
    moved = replace(material, migration=Migration(exponents), made={})
    graph, tensors = moved.changed("residual_step", {group: W8A8 for group in material.groups if group.startswith("residual_step")})
    rounded = {node.input[0] for node in graph.graph.node if node.op_type == "QuantizeLinear"}
    assert sites and rounded == {f"{site.tensors[0][1]}.multiplied" for site in sites}
    for site in sites:
        assert torch.equal(tensors[f"{site.divided}.factor"], torch.full((len(exponents[site]),), 0.25))
        assert all(torch.equal(tensors[f"{name}.rows"], exponents[site]) for name in site.multiplied)


@pytest.mark.parametrize(("kind", "casts"), [(TensorProto.FLOAT, 0), (TensorProto.FLOAT16, 1)])
def test_a_factor_is_multiplied_in_the_type_of_the_graph(kind: int, casts: int) -> None:
    """Other readers of the tensor keep it as it was."""
    nodes = [helper.make_node("MatMul", ["x", weight], [f"{weight}.y"]) for weight in ("a", "b")] + [helper.make_node("Abs", ["x"], ["c"])]
    outputs = [helper.make_tensor_value_info(name, kind, ["n", 4]) for name in ("a.y", "b.y")]
    model = helper.make_model(helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", kind, ["n", 4])], outputs))
    assert multiply(model, "x", ["b"], 4) == "x.factor"
    read = {node.output[0]: node.input[0] for node in model.graph.node}
    assert read["a.y"] == read["c"] == "x" and read["b.y"] == "x.multiplied"
    assert [node.op_type for node in model.graph.node] == ["MatMul", *["Cast"] * casts, "Mul", "MatMul", "Abs"]
    (factor,) = model.graph.initializer
    assert (factor.data_type, list(factor.dims)) == (TensorProto.FLOAT, [4])


def test_channels_that_stand_out_are_divided() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(64, 16, generator=generator)
    x[:, 5] *= 300
    peaks = Peaks()
    peaks.add(x.numpy(), -1, "scale 0", "x")
    tensors = {"norm": torch.ones(16), "w": torch.randn(16, 8, generator=generator)}
    site = Site("norm", ((("engine", "x"), ("w",)),))
    migration = choose([site], {("engine", "x"): peaks}, tensors.__getitem__, "mse")
    exponent = migration.exponents[site]
    assert exponent[5] >= 3 and exponent[5] > exponent[:5].max()
    factors = migration.factors([site])
    assert torch.equal(factors["norm.columns"], -exponent) and torch.equal(factors["w.rows"], exponent)
    assert torch.equal(move(move(tensors["w"], exponent, None), -exponent, None), tensors["w"])


def test_even_channels_stay(material: Material) -> None:
    peaks = Peaks()
    peaks.add(np.sign(np.random.default_rng(0).standard_normal((64, 8))).astype(np.float32), -1, "scale 0", "x")
    tensors = {"norm": torch.ones(8), "w": torch.ones(8, 4)}
    assert not choose([Site("norm", ((("e", "x"), ("w",)),))], {("e", "x"): peaks}, tensors.__getitem__, "mse").exponents


def test_a_channel_that_float16_could_not_hold_stays() -> None:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(2))
    x[:, 1] *= 1e4
    peaks = Peaks()
    peaks.add(x.numpy(), -1, "scale 0", "x")
    tensors = {"norm": torch.ones(4).half(), "w": torch.full((4, 4), 60000.0).half()}
    migration = choose([Site("norm", ((("e", "x"), ("w",)),))], {("e", "x"): peaks}, tensors.__getitem__, "mse")
    assert all(int(exponent[1]) <= 0 for exponent in migration.exponents.values())


def test_a_multiplication_of_its_own_has_to_pay() -> None:
    """A channel that stands out a little is worth a migration into weights, but no multiplication; one that does so a lot is."""
    generator = torch.Generator().manual_seed(2)
    tensors = {"norm": torch.ones(16), "w": torch.randn(16, 8, generator=generator)}
    reads = ((("engine", "x"), ("w",)),)
    kept = []
    for size in (1.0, 1.7, 300.0):
        x = torch.randn(64, 16, generator=torch.Generator().manual_seed(3))
        x[:, 5] *= size
        peaks = Peaks()
        peaks.add(x.numpy(), -1, "scale 0", "x")
        sites = [Site("norm", reads), Site("engine.x", reads, explicit=True)]
        found = choose(sites, {("engine", "x"): peaks}, tensors.__getitem__, "mse")
        kept.append([site in found.exponents for site in sites])
        assert all("engine.x.columns" not in found.factors([site]) for site in found.exponents)
    assert kept[-1] == [True, True] and not any(explicit for _, explicit in kept[:-1])


@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_powers_of_two_round_nothing(kind: torch.dtype) -> None:
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).to(kind)
    rows, columns = torch.tensor([1, -2, 3, 0, -1, 2], dtype=torch.int8), torch.tensor([-3, 0, 2, 1], dtype=torch.int8)
    moved = move(weight, rows, columns)
    assert moved.dtype == kind and moved[1, 0] == weight[1, 0] / 32
    assert torch.equal(move(moved, -rows, -columns), weight)
