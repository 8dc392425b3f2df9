"""Moving the spread of activations into weights: where, by how much, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hart_edge.calibration.graphs import MemoryEngine, open_with
from hart_edge.calibration.material import Material, open_weights
from hart_edge.calibration.migrate import Migration, choose
from hart_edge.calibration.replay import record, replay
from hart_edge.calibration.sites import Site, find_sites
from hart_edge.calibration.statistics import Peaks
from hart_edge.calibration.write import embed
from hart_edge.export.stored import exponents_of, move


def test_sites_of_the_transformer(material: Material) -> None:
    sites = {site.divided: site for site in find_sites(material.graphs["transformer"], "transformer", material.products)}
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


def test_a_migrated_model_computes_the_same(material: Material) -> None:
    generator = torch.Generator().manual_seed(0)
    sites = [site for name, graph in material.graphs.items() for site in find_sites(graph, name, material.products)]
    width = {site: len(material.peaks[site.tensors[0]].largest) for site in sites}
    migration = Migration({site: torch.randint(-3, 4, (width[site],), generator=generator).to(torch.int8) for site in sites})
    factors = migration.factors(sites)
    changed = {}
    with open_weights(material.bundle) as weights:
        for name in {key.rpartition(".")[0] for key in factors}:
            changed[name] = move(weights.get_tensor(name), *exponents_of(name, factors))
    engines = {}
    for name in {site.divided.partition(".")[0] for site in sites}:
        graph = type(material.graphs[name])()
        graph.CopyFrom(material.graphs[name])
        embed(graph, name, changed)
        engines[name] = MemoryEngine(graph, material.bundle.root, name)
    with open_with(material.bundle, {}) as pipe:
        recorded = record(pipe, ["a boat"])
    with open_with(material.bundle, dict(engines)) as pipe:
        damage = replay(pipe, recorded, engines)
    assert max(damage.kl) < 1e-9 and damage.latent < 1e-4


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


@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_powers_of_two_round_nothing(kind: torch.dtype) -> None:
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).to(kind)
    rows, columns = torch.tensor([1, -2, 3, 0, -1, 2], dtype=torch.int8), torch.tensor([-3, 0, 2, 1], dtype=torch.int8)
    moved = move(weight, rows, columns)
    assert moved.dtype == kind and moved[1, 0] == weight[1, 0] / 32
    assert torch.equal(move(moved, -rows, -columns), weight)
